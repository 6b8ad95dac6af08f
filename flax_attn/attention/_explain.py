"""Which implementation would compute an attention call, and why the others would not."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flax_attn._jax.division import compute_capability, device_of
from flax_attn._pytree import pytree, static
from flax_attn.attention import _registry
from flax_attn.attention._core.arguments import check_options
from flax_attn.attention._core.implementation import Implementation, Target
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.placement import Placement, check_placement
from flax_attn.attention._core.primitive import PARTITIONED
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.selection import Choice, as_candidates, select
from flax_attn.attention.blockwise import Blockwise
from flax_attn.masks import Mask, Plan
from flax_attn.masks._intervals import opaque
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL


@pytree
class Explanation:
    """The result of `explain`. Its `str` is the text that `explain` printed.

    Attributes:
      implementation: The name of the implementation that would run.
      refusals: Why the others would not run, by name.
      plan: The block map, in the blocks of the blockwise implementation; None if a length is 0 or
        symbolic, and with a placement.
      opaque: Operations of the mask that the block map has no rule for. Blocks that depend on them
        count as partial.
      text: The printed text.
      flops: Operations of the dot products of a forward pass, in the blocks that are computed; None
        where these are not known.

    Example:
      >>> import jax.numpy as jnp
      >>> import flax_attn
      >>> x = jnp.zeros((1, 1024, 4, 64))
      >>> found = flax_attn.explain(x, x, x, is_causal=True, platform="cpu")  # doctest: +ELLIPSIS
      dot_product_attention on cpu: blockwise
      ...
      >>> found.plan.density
      0.75
    """

    plan: Plan | None
    implementation: str = static()
    refusals: dict[str, str] = static()
    opaque: tuple[str, ...] = static()
    text: str = static()
    flops: float | None = static(default=None)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Explanation(implementation={self.implementation!r}, plan={self.plan!r})"


def explain(
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    value: Float[Array, "*B S K Dv"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    *,
    platform: str | None = None,
    **options: Any,
) -> Explanation:
    """Print which implementation would run, why the others would not, and the block map.

    The attention itself is not computed. With a placement, it prints what each device computes.

    Args:
      query: As in `dot_product_attention`.
      key: As in `dot_product_attention`.
      value: As in `dot_product_attention`.
      bias: As in `dot_product_attention`.
      mask: As in `dot_product_attention`.
      platform: `"cpu"`, `"cuda"`, `"rocm"` or `"tpu"`; default the one that runs here.
      **options: As in `dot_product_attention`.

    Returns:
      An `Explanation`.

    Raises:
      ValueError: As `dot_product_attention`.
      NotImplementedError: As `dot_product_attention`.

    Example:
      >>> import jax.numpy as jnp
      >>> import flax_attn
      >>> x = jnp.zeros((2, 16, 4, 8))
      >>> flax_attn.explain(x, x, x, platform="cpu").implementation    # doctest: +ELLIPSIS
      dot_product_attention on cpu: dense
      ...
      'dense'
    """
    function = "explain"
    platform = jax.default_backend() if platform is None else platform
    platform = "cuda" if platform == "gpu" else platform
    implementation, placement = options.pop("implementation", None), options.pop("placement", None)
    options.pop("return_residual", None)
    check_options(function, options)
    if placement is not None:
        return _explain_placement(
            placement, implementation, platform, (query, key, value, bias, mask), options
        )
    candidates = as_candidates(function, implementation)
    problem = normalize(function, query, key, value, bias, mask, **options)
    # What XLA divides by our rule is computed part by part; elsewhere it divides the program.
    is_divided = any(map(_is_split, (query, key, value))) and platform not in PARTITIONED
    target = _target_here(platform)._replace(partitioned=is_divided)
    chosen = select(function, problem, candidates, target)
    refusals = {
        other.name: _reason(other, problem, candidates, target)
        for other in (*_registry.REGISTRY, *_registry.ABSENT)
        if other.name != chosen.name
    }
    own = chosen.block_map(problem, target)
    plan = own or Blockwise().block_map(problem, target)
    unknown, flops = opaque(problem.mask, *problem.records()), None
    lines = [f"dot_product_attention on {platform}: {chosen.name}"]
    lines.append(f"  {_describe_problem(problem)}")
    lines += [f"  {remark}" for remark in chosen.remarks(problem, target)]
    lines += [f"  not {name}: {reason}" for name, reason in refusals.items()]
    if unknown:
        lines.append(f"  the block map does not understand {', '.join(unknown)} of the mask")
    if plan is None:
        lines.append(f"  no block map: {Blockwise().cannot_cut(problem)}")
    else:
        flops = _flops(problem, plan)
        lines.append(f"  {_describe_blocks(plan)}{'' if own else ', as blockwise cuts it'}")
        if flops is not None:
            lines.append(f"  dot products of these: {flops / 1e9:,.1f} GFLOP forward")
        lines += [f"  {line}" for line in str(plan).splitlines()]
    text = "\n".join(lines)
    print(text)
    return Explanation(plan, chosen.name, refusals, unknown, text, flops)


def _explain_placement(
    placement: Placement, implementation: Choice, platform: str, arrays: Any, options: Any
) -> Explanation:
    """What each device computes, and how often."""
    function = "explain"
    check_placement(function, placement)
    placement = placement.with_implementation(function, implementation)
    problem = normalize(function, *arrays, placement=placement, **options)
    coords = options.get("query_coords"), options.get("key_coords")
    block, candidates, steps = placement.on_a_device(function, problem, coords)
    target = _target_here(platform)
    chosen = select(function, block, candidates, target)
    lines = [
        f"dot_product_attention on {platform}: {placement!r}",
        f"  {_describe_problem(problem)}",
        f"  each device: {_describe_problem(block)}; by {chosen.name}",
        *(
            f"  {remark}"
            for remark in (*steps, *chosen.remarks(block, target._replace(is_part=True)))
        ),
    ]
    text = "\n".join(lines)
    print(text)
    return Explanation(None, placement.name, {}, (), text)


def _is_split(array: Any) -> bool:
    """Whether an array is split over several devices, so that `jit` divides the program."""
    is_known = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    return is_known and not array.sharding.is_fully_replicated


def _target_here(platform: str) -> Target:
    """A device of this machine, if it has one of the platform."""
    device = device_of(platform)
    return Target(
        platform,
        device=None if device is None else device.device_kind,
        compute_capability=compute_capability(device),
    )


def _reason(
    other: Implementation,
    problem: Problem,
    candidates: tuple[Implementation, ...],
    target: Target,
) -> str:
    """Why another implementation would not run."""
    reason = other.declines(problem, target) or other.defers(problem, target)
    if reason is not None:
        return reason
    asked_for = other.name in [candidate.name for candidate in candidates]
    return "another comes first." if asked_for or not candidates else "it was not asked for."


def _describe_problem(problem: Problem) -> str:
    length_q, length_k, num_heads, num_kv_heads = problem.sizes
    parts = [
        f"batch {list(problem.batch)}, {length_q} queries × {num_heads} heads, "
        f"{length_k} keys × {num_kv_heads} heads, {problem.dtype}",
        f"mask {problem.mask!r}",
    ]
    if problem.score_mod is not None:
        parts.append(f"modifiers {problem.score_mod!r}")
    return "; ".join(parts)


def _describe_blocks(plan: Plan) -> str:
    kinds = plan.kinds
    if isinstance(kinds, jax.core.Tracer):
        return f"blocks of {plan.block[0]} × {plan.block[1]}, known when it runs"
    shares = {
        name: float(jnp.mean(kinds == kind))
        for name, kind in (("full", FULL), ("partial", PARTIAL), ("empty", EMPTY))
    }
    listed = ", ".join(f"{share:.1%} {name}" for name, share in shares.items())
    return (
        f"blocks of {plan.block[0]} × {plan.block[1]}: {plan.density:.1%} are computed ({listed})"
    )


def _flops(problem: Problem, plan: Plan) -> float | None:
    """Operations of both dot products in the blocks that are not empty."""
    if isinstance(plan.kinds, jax.core.Tracer):
        return None
    sides = []
    for count, size, length in zip(plan.kinds.shape[-2:], plan.block, plan.lengths, strict=True):
        sides.append(np.diff(np.minimum(np.arange(count + 1) * size, length)))
    rows, columns = sides
    computed = np.asarray(plan.kinds) != EMPTY
    pairs = np.mean(np.einsum("...xy,x,y->...", computed, rows, columns))  # of a head
    heads = math.prod(problem.batch) * problem.sizes[2]
    features = problem.query.values.shape[-1] + problem.value.values.shape[-1]
    return float(2 * pairs * heads * features)
