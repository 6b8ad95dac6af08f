"""Attention as three JAX primitives: forward, its linear tangent, and the tangent's transpose.

    (O, LSE) = forward(x),  (Ȯ, LSĖ) = tangent(x, O, LSE; ẋ),  x̄ = transpose(x, O, LSE; dO, dLSE)

`jvp` binds forward and tangent. `grad` transposes the tangent. So both take the memory of the
implementation. Tangent and transpose are each other's transposes. A derivative of either with
respect to x, O or LSE (second order) is that of the dense formula. `vmap` adds a batch axis. The
implementation is chosen when a primitive is lowered, for the platform that is compiled for.

x are the leaves of a `Problem`, and `structure` is the rest of it. `active` are the numbers of the
leaves that have a tangent. The rules of these primitives are in this file; `_jax` registers them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flax_attn._jax import (
    LoweringContext,
    Primitive,
    Zero,
    instantiate_zeros,
    is_divided,
    is_linear,
    lower_function,
    new_primitive,
    no_mesh,
    set_lowering,
    set_rules,
    vary_together,
)
from flax_attn._jax.division import (
    can_divide,
    compute_capability,
    device_of,
    divide,
    is_exported,
)
from flax_attn.attention import _registry
from flax_attn.attention._core.implementation import Implementation, Results, Target
from flax_attn.attention._core.partition import Call, Dims
from flax_attn.attention._core.problem import VALUE, Problem, Structure
from flax_attn.attention._core.selection import select

Arrays = Sequence[jax.Array]
Tangents = Sequence[jax.Array | Zero]
Candidates = tuple[Implementation, ...]
Active = tuple[int, ...]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Where XLA can be told how a computation is divided. Compilers for TPUs cannot ahead of time: they
# find no emitter for CustomSPMDPartitioning.
PARTITIONED = ("cpu", "cuda", "rocm")


NO_JET = (
    "dot_product_attention: jax.experimental.jet has no rule for attention. Nest jax.jvp for "
    "higher derivatives."
)
forward_p = new_primitive("attention", NO_JET)
tangent_p = new_primitive("attention_tangent", NO_JET)
transpose_p = new_primitive("attention_transpose", NO_JET)


def attend(problem: Problem, candidates: Candidates) -> Results:
    """Output and LSE of a problem, by the first candidate that computes it."""
    leaves, structure = Structure.of(problem)
    leaves = vary_together([jnp.asarray(leaf) for leaf in leaves])
    output, lse = forward_p.bind(*leaves, structure=structure, candidates=candidates)
    return output, lse


@dataclasses.dataclass(frozen=True)
class Operands:
    """The operands of a primitive, by what they mean.

    Attributes:
      x: The leaves of the problem.
      results: Output and LSE; empty for `forward`.
      linear: What the primitive is linear in: tangents of the active leaves, or cotangents of
        output and LSE; empty for `forward`.
    """

    x: list[Any]
    results: list[Any]
    linear: list[Any]

    @classmethod
    def of(cls, structure: Structure, operands: Sequence[Any]) -> "Operands":
        """Tell the operands of a primitive apart."""
        count = structure.num_leaves
        x, rest = list(operands[:count]), list(operands[count:])
        return cls(x, rest[:2], rest[2:])


# ---- what each primitive computes


def _run_forward(
    chosen: Implementation, target: Target, operands: Arrays, structure: Structure
) -> Arrays:
    return chosen.forward(structure.problem(operands), target)


def _run_tangent(
    chosen: Implementation, target: Target, operands: Arrays, structure: Structure, active: Active
) -> Arrays:
    given = Operands.of(structure, operands)
    tangents = dict(zip(active, given.linear, strict=True))
    output, lse = given.results
    return chosen.tangent(structure.problem(given.x), target, (output, lse), tangents)


def _run_transpose(
    chosen: Implementation,
    target: Target,
    operands: Arrays,
    structure: Structure,
    active: Active,
    lse_cotangent: bool,
) -> Arrays:
    target = target._replace(lse_cotangent=lse_cotangent)
    given = Operands.of(structure, operands)
    (output, lse), (d_output, d_lse) = given.results, given.linear
    problem = structure.problem(given.x)
    found = chosen.transpose(problem, target, (output, lse), (d_output, d_lse), active)
    return [g.astype(given.x[i].dtype) for g, i in zip(found, active, strict=True)]


# ---- shapes and letters


def _results(structure: Structure, x: Sequence[Any]) -> list[Any]:
    """The abstract values of output and LSE."""
    problem = structure.problem(x[: structure.num_leaves])
    query, value = problem.query.values, problem.value.values
    shape = (*query.shape[:-1], value.shape[-1])
    rows = query.sharding.spec[: query.ndim - 1]  # of an explicit mesh
    results = []
    for size, dtype in ((shape, problem.output_dtype), (shape[:-1], problem.scores_dtype)):
        spec = (*rows, *(None,) * (len(size) - len(rows)))
        sharding = query.sharding.update(spec=PartitionSpec(*spec))
        results.append(query.update(shape=size, dtype=dtype, weak_type=False, sharding=sharding))
    return results


def _gradients(operands: Sequence[Any], active: Active) -> list[Any]:
    """The abstract values of the gradients of some leaves."""
    return [operands[i].update(weak_type=False) for i in active]


def _forward_shapes(*operands: Any, structure: Structure, candidates: Candidates) -> list[Any]:
    del candidates
    return _results(structure, operands)


def _tangent_shapes(
    *operands: Any, structure: Structure, candidates: Candidates, active: Active
) -> list[Any]:
    del candidates, active
    return _results(structure, operands)


def _transpose_shapes(
    *operands: Any,
    structure: Structure,
    candidates: Candidates,
    active: Active,
    lse_cotangent: bool,
) -> list[Any]:
    del candidates, structure, lse_cotangent
    return _gradients(operands, active)


def _letters(
    primitive: Primitive, structure: Structure, active: Active
) -> tuple[list[str], list[str]]:
    """The axes of every operand of a primitive, and of every result."""
    leaves, results = structure.letters, ["btnd", "btn"]
    some = [leaves[i] for i in active]
    if primitive is forward_p:
        return leaves, results
    if primitive is tangent_p:
        return leaves + results + some, results
    return leaves + results + results, some


# ---- derivatives


def _forward_jvp(
    primals: Arrays, tangents: Tangents, *, structure: Structure, candidates: Candidates
) -> tuple[Arrays, Arrays]:
    settings = {"structure": structure, "candidates": candidates}
    results = forward_p.bind(*primals, **settings)
    active, moving = _nonzero(primals, tangents)
    if not active:
        return results, [jnp.zeros_like(x) for x in results]
    derivative = tangent_p.bind(*primals, *results, *moving, **settings, active=active)
    return results, derivative


def _tangent_jvp(
    primals: Arrays,
    tangents: Tangents,
    *,
    structure: Structure,
    candidates: Candidates,
    active: Active,
) -> tuple[Arrays, Arrays]:
    settings = {"structure": structure, "candidates": candidates}
    given, changes = Operands.of(structure, primals), Operands.of(structure, tangents)
    out = tangent_p.bind(*primals, **settings, active=active)
    terms = []
    which, moving = _nonzero(given.linear, changes.linear)
    if which:
        chosen = tuple(active[i] for i in which)
        terms.append(tangent_p.bind(*given.x, *given.results, *moving, **settings, active=chosen))
    terms += _by_inputs(_run_tangent, given, changes, structure, candidates, active=active)
    return out, _sum(terms, out)


def _transpose_jvp(
    primals: Arrays,
    tangents: Tangents,
    *,
    structure: Structure,
    candidates: Candidates,
    **settings: Any,
) -> tuple[Arrays, Arrays]:
    given, changes = Operands.of(structure, primals), Operands.of(structure, tangents)
    both = {"structure": structure, "candidates": candidates}
    out = transpose_p.bind(*primals, **both, **settings)
    terms = []
    if any(not isinstance(t, Zero) for t in changes.linear):
        moving = [instantiate_zeros(t) for t in changes.linear]
        changed = settings | {"lse_cotangent": not isinstance(changes.linear[1], Zero)}
        terms.append(transpose_p.bind(*given.x, *given.results, *moving, **both, **changed))
    terms += _by_inputs(_run_transpose, given, changes, structure, candidates, **settings)
    return out, _sum(terms, out)


def _by_inputs(
    run: Callable[..., Arrays],
    given: Operands,
    changes: Operands,
    structure: Structure,
    candidates: Candidates,
    **settings: Any,
) -> list[Arrays]:
    """The derivative of tangent or transpose along tangents of x, O and LSE; none if all are 0.

    JAX differentiates the dense formula.
    """
    inputs = [*given.x, *given.results]
    which, moving = _nonzero(inputs, [*changes.x, *changes.results])
    if not which:
        return []
    own = candidates[0].differentiable if candidates else None
    chosen = _registry.FALLBACK if own is None else own

    def of_moving(*values: jax.Array) -> Arrays:
        replaced = dict(zip(which, values, strict=True))
        operands = [*(replaced.get(i, x) for i, x in enumerate(inputs)), *given.linear]
        return tuple(run(chosen, Target(None), operands, structure=structure, **settings))

    return [jax.jvp(of_moving, [inputs[i] for i in which], moving)[1]]


def _nonzero(primals: Arrays, tangents: Tangents) -> tuple[Active, list[jax.Array]]:
    """The numbers of the tangents that are not known to be 0, and these."""
    chosen = [
        (i, tangent)
        for i, (primal, tangent) in enumerate(zip(primals, tangents, strict=True))
        if not isinstance(tangent, Zero) and jnp.issubdtype(primal.dtype, jnp.inexact)
    ]
    return tuple(i for i, _ in chosen), [tangent for _, tangent in chosen]


def _sum(terms: list[Arrays], like: Arrays) -> list[jax.Array]:
    if not terms:
        return [jnp.zeros_like(x) for x in like]
    return [functools.reduce(jnp.add, parts) for parts in zip(*terms, strict=True)]


def _forward_transpose(
    cotangents: Tangents, *operands: Any, structure: Structure, candidates: Candidates
) -> list[jax.Array | None]:
    """Attention is linear in the values, and in nothing else."""
    if [i for i, x in enumerate(operands) if is_linear(x)] != [VALUE]:
        raise NotImplementedError(
            "dot_product_attention: it is linear in the value alone, and cannot be transposed in "
            "another argument. Use jax.vjp."
        )
    settings = {"structure": structure, "candidates": candidates}
    aval = operands[VALUE].aval
    known = list(operands)
    known[VALUE] = jnp.zeros(aval.shape, aval.dtype)  # tangents do not depend on the values
    known = vary_together(known)
    output, lse = forward_p.bind(*known, **settings)
    d_output = instantiate_zeros(cotangents[0])
    (d_value,) = transpose_p.bind(
        *known,
        output,
        lse,
        d_output,
        jnp.zeros_like(lse),
        **settings,
        active=(VALUE,),
        lse_cotangent=False,
    )
    return [d_value if i == VALUE else None for i in range(len(operands))]


def _tangent_transpose(
    cotangents: Tangents, *operands: Any, structure: Structure, **settings: Any
) -> list[jax.Array | None]:
    """Transpose the tangent, in what it is linear in, by `transpose`."""
    of_lse = not isinstance(cotangents[1], Zero)
    bind = functools.partial(transpose_p.bind, **settings, lse_cotangent=of_lse)
    return _by_the_other(bind, cotangents, operands, structure)


def _transpose_transpose(
    cotangents: Tangents,
    *operands: Any,
    structure: Structure,
    lse_cotangent: bool,
    **settings: Any,
) -> list[jax.Array | None]:
    """Transpose `transpose`, in what it is linear in, by the tangent."""
    del lse_cotangent
    bind = functools.partial(tangent_p.bind, **settings)
    return _by_the_other(bind, cotangents, operands, structure)


def _by_the_other(
    bind: Callable[..., Arrays], cotangents: Tangents, operands: Arrays, structure: Structure
) -> list[jax.Array | None]:
    given = Operands.of(structure, operands)
    known = [*given.x, *given.results]
    found = bind(*known, *map(instantiate_zeros, cotangents), structure=structure)
    wanted = [f if is_linear(a) else None for f, a in zip(found, given.linear, strict=True)]
    return [*(None for _ in known), *wanted]


# ---- batching


def _batch(
    primitive: Primitive,
    operands: Arrays,
    dims: Sequence[int | None],
    *,
    structure: Structure,
    **settings: Any,
) -> tuple[Arrays, Sequence[int]]:
    """Add a batch axis. If a batched operand has no batch axis, call once per example."""
    active, count = settings.get("active", ()), structure.num_leaves
    letters, _ = _letters(primitive, structure, active)
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    # The gradient of each example needs a batch axis of its own.
    summed = primitive is transpose_p and any("b" not in letters[i] for i in active)
    shared = any(d is not None and "b" not in a for a, d in zip(letters, dims, strict=True))
    if summed or shared:
        return _one_by_one(primitive, operands, dims, structure=structure, **settings)
    batched = []
    for i, (x, d, a) in enumerate(zip(operands, dims, letters, strict=True)):
        if d is not None:
            x = jnp.moveaxis(x, d, 0)
        elif "b" in a:
            # Query, key and value have full batch axes; a leaf has the shape of its tangent.
            full = i <= VALUE or i >= count or i in active
            x = jnp.broadcast_to(x, (size if full else 1, *x.shape))
        batched.append(x)
    out = primitive.bind(*batched, structure=structure, **settings)
    return out, [0] * len(out)


def _one_by_one(
    primitive: Primitive, operands: Arrays, dims: Sequence[int | None], **settings: Any
) -> tuple[Arrays, Sequence[int]]:
    moved = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]
    moving = [x for x, d in zip(moved, dims, strict=True) if d is not None]

    def one(chosen: list[jax.Array]) -> list[jax.Array]:
        rest = iter(chosen)
        each = [x if d is None else next(rest) for x, d in zip(moved, dims, strict=True)]
        return primitive.bind(*each, **settings)

    results = jax.lax.map(one, moving)
    return results, [0] * len(results)


# ---- lowering


def _lower(
    primitive: Primitive,
    run: Callable[..., Arrays],
    platform: str | None,
    ctx: LoweringContext,
    *operands: Any,
    structure: Structure,
    candidates: Candidates,
    **settings: Any,
) -> Any:
    """Lower by the implementation that serves the problem, divided among the module's devices."""
    problem = structure.problem(ctx.avals_in[: structure.num_leaves])
    partitioned, device = is_divided(ctx), device_of(platform, ctx)
    divides = partitioned and platform in PARTITIONED and can_divide(ctx)
    target = Target(
        platform,
        partitioned and not divides,  # else it gets the part of a device
        device=None if device is None else device.device_kind,
        compute_capability=compute_capability(device),
        is_exported=is_exported(ctx),
    )
    chosen = select("dot_product_attention", problem, candidates, target)
    target = target._replace(partitioned=partitioned)
    if divides and not chosen.divisible:
        settings_of_part = {"candidates": candidates, **settings}
        call = _call(primitive, problem, ctx.avals_in, structure, **settings_of_part)
        split, ctx = divide(ctx, call)
        with no_mesh(ctx) as plain:
            return lower_function(split)(plain, *operands)

    def compute(*operands: jax.Array) -> list[jax.Array]:
        return list(run(chosen, target, operands, structure=structure, **settings))

    with no_mesh(ctx) as plain:
        return lower_function(compute)(plain, *operands)


def _call(
    primitive: Primitive,
    problem: Problem,
    avals: Sequence[Any],
    structure: Structure,
    **settings: Any,
) -> Call:
    """The primitive as a function of arrays with named dimensions."""
    active = settings.get("active", ())

    def bind(operands: Arrays, all_queries: bool) -> list[jax.Array]:
        x, rest = operands[: structure.num_leaves], operands[structure.num_leaves :]
        part = structure.problem(x)
        if not all_queries:  # a block map, whose leaf is the last, is that of all of them
            part = dataclasses.replace(part, plan=None, in_order=False)
        leaves, part_structure = Structure.of(part)
        return primitive.bind(*leaves, *rest, structure=part_structure, **settings)

    letters, result_letters = _letters(primitive, structure, active)
    results = _gradients(avals, active) if primitive is transpose_p else _results(structure, avals)
    rank = len(problem.batch)
    _, _, num_heads, num_kv_heads = problem.sizes
    return Call(
        bind,
        [Dims.of(x.shape, a, rank) for x, a in zip(avals, letters, strict=True)],
        [Dims.of(x.shape, a, rank) for x, a in zip(results, result_letters, strict=True)],
        num_heads // num_kv_heads,
    )


set_rules(
    forward_p,
    shapes=_forward_shapes,
    jvp=_forward_jvp,
    transpose=_forward_transpose,
    batch=functools.partial(_batch, forward_p),
)
set_rules(
    tangent_p,
    shapes=_tangent_shapes,
    jvp=_tangent_jvp,
    transpose=_tangent_transpose,
    batch=functools.partial(_batch, tangent_p),
)
set_rules(
    transpose_p,
    shapes=_transpose_shapes,
    jvp=_transpose_jvp,
    transpose=_transpose_transpose,
    batch=functools.partial(_batch, transpose_p),
)
_RUNS: dict[Primitive, Callable[..., Arrays]] = {
    forward_p: _run_forward,
    tangent_p: _run_tangent,
    transpose_p: _run_transpose,
}
for _p, _run in _RUNS.items():
    for _platform in (None, *PLATFORMS):
        set_lowering(_p, functools.partial(_lower, _p, _run, _platform), _platform)
