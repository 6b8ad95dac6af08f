"""Which implementation would compute an attention call, and why the others would not."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flax_attn._jax_division import compute_capability, device_of
from flax_attn._pytree import pytree, static
from flax_attn.attention import _registry
from flax_attn.attention._core.arguments import check_options
from flax_attn.attention._core.implementation import Implementation, Target
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.placement import Placement, check_placement
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.selection import Choice, as_candidates, select
from flax_attn.attention.blockwise import Blockwise
from flax_attn.masks import Mask, Plan
from flax_attn.masks._intervals import opaque
from flax_attn.masks.plan import FULL, block_kinds


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
    target = _target_here(platform)
    chosen = select(function, problem, candidates, target)
    refusals = {
        other.name: _reason(other, problem, candidates, target)
        for other in (*_registry.REGISTRY, *_registry.ABSENT)
        if other.name != chosen.name
    }
    blockwise = chosen if isinstance(chosen, Blockwise) else Blockwise()
    no_map = blockwise.cannot_cut(problem)
    plan = None if no_map else block_map(problem, blockwise, platform)
    unknown = opaque(problem.mask, *problem.records())
    lines = [f"dot_product_attention on {platform}: {chosen.name}"]
    lines.append(f"  {_describe_problem(problem)}")
    lines += [f"  {remark}" for remark in chosen.remarks(problem, target)]
    lines += [f"  not {name}: {reason}" for name, reason in refusals.items()]
    if unknown:
        lines.append(f"  the block map does not understand {', '.join(unknown)} of the mask")
    if plan is None:
        lines.append(f"  no block map: {no_map}")
    else:
        lines.append(f"  {_describe_blocks(plan)}")
        lines += [f"  {line}" for line in str(plan).splitlines()]
    text = "\n".join(lines)
    print(text)
    return Explanation(plan, chosen.name, refusals, unknown, text)


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


def _target_here(platform: str) -> Target:
    """A device of this machine, if it has one of the platform."""
    device = device_of(platform)
    return Target(
        platform,
        device=None if device is None else device.device_kind,
        compute_capability=compute_capability(device),
    )


def block_map(problem: Problem, blockwise: Blockwise, platform: str) -> Plan:
    """The blocks of a problem, of the sizes that the blockwise implementation takes."""
    length_q, length_k, _, _ = problem.sizes
    sizes = blockwise.sizes(problem, Target(platform))
    block = sizes.query, sizes.key
    if problem.plan is not None:
        kinds = problem.plan.kinds.values
    else:
        kinds = block_kinds(problem.mask, *problem.records(), block)
    return Plan(kinds=kinds, block=block, lengths=(length_q, length_k))


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
    full = float(jnp.mean(kinds == FULL))
    return (
        f"blocks of {plan.block[0]} × {plan.block[1]}: {plan.density:.1%} are computed, "
        f"{full:.1%} of all without a mask"
    )
