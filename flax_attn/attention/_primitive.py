"""Attention as three primitives: forward, its linear tangent, and the tangent's transpose.

    (O, LSE) = forward(x),  (Ȯ, LSĖ) = tangent(x, O, LSE; ẋ),  x̄ = transpose(x, O, LSE; dO, c)

`jvp` binds forward and tangent, `grad` transposes the tangent, so that both are first class and
both take the memory of the implementation. The tangent and its transpose are each other's
transposes. A derivative of either by x itself (second order) is that of the dense formula. `vmap`
adds a batch axis. Which implementation runs is decided when a primitive is lowered, for the
platform that is compiled for.

`x` are the leaves of a frozen `Problem`; `tree` is its structure, `active` numbers the leaves that
have a tangent. Everything about JAX's interpreters is in this file.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import jet
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from flax_attn._jax import divide, is_divided, lower_without_mesh, vary_together
from flax_attn.attention import dense
from flax_attn.attention._implementations import IMPLEMENTATIONS, choose
from flax_attn.attention._layout import VALUE
from flax_attn.attention._partition import Call, Dims
from flax_attn.attention._problem import Problem, freeze, leaf_axes, thaw

Arrays = Sequence[jax.Array]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Where XLA can be told how a computation is divided. Compilers for TPUs cannot ahead of time: they
# find no emitter for CustomSPMDPartitioning.
PARTITIONED = ("cpu", "cuda", "rocm")


def attend(problem: Problem, names: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """The output and the LSE of a problem by the first of the implementations that takes it."""
    leaves, tree = jax.tree.flatten(freeze(problem))
    leaves = vary_together([jnp.asarray(leaf) for leaf in leaves])
    output, lse = forward_p.bind(*leaves, tree=tree, names=names)
    return output, lse


def _primitive(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.lru_cache(maxsize=256)
    def jitted(**settings: Any) -> Callable[..., list[jax.Array]]:
        return jax.jit(functools.partial(primitive.bind, **settings))

    def compiled(*args: jax.Array, **settings: Any) -> list[jax.Array]:
        with jax.disable_jit(False):  # a primitive has no other meaning than its compiled program
            return jitted(**settings)(*args)

    primitive.def_impl(compiled)
    jet.jet_rules[primitive] = _refuse_jet
    return primitive


def _refuse_jet(*args: Any, **settings: Any) -> Any:
    del args, settings
    raise NotImplementedError(
        "dot_product_attention: jax.experimental.jet has no rule for attention. Nest jax.jvp for "
        "higher derivatives."
    )


forward_p = _primitive("attention")
tangent_p = _primitive("attention_tangent")
transpose_p = _primitive("attention_transpose")


# ---- shapes


def _results(tree: Any, leaves: Sequence[Any]) -> list[Any]:
    problem = thaw(tree.unflatten(leaves))
    query, value = problem.query.values, problem.value.values
    shape = (*query.shape[:-1], value.shape[-1])
    rows = query.sharding.spec[: query.ndim - 1]  # of an explicit mesh
    results = []
    for size, dtype in ((shape, problem.output_dtype), (shape[:-1], problem.scores_dtype)):
        spec = (*rows, *(None,) * (len(size) - len(rows)))
        sharding = query.sharding.update(spec=PartitionSpec(*spec))
        results.append(query.update(shape=size, dtype=dtype, weak_type=False, sharding=sharding))
    return results


def _gradients(args: Sequence[Any], active: tuple[int, ...]) -> list[Any]:
    return [args[i].update(weak_type=False) for i in active]


forward_p.def_abstract_eval(lambda *leaves, tree, names: _results(tree, leaves))
tangent_p.def_abstract_eval(
    lambda *args, tree, names, active: _results(tree, args[: tree.num_leaves])
)
transpose_p.def_abstract_eval(lambda *args, tree, names, active: _gradients(args, active))


def _letters(primitive: Primitive, tree: Any, active: Any) -> tuple[list[str], list[str]]:
    """The axes of every operand of a primitive, and of every result."""
    leaves, results = leaf_axes(tree), ["btnd", "btn"]
    some = [leaves[i] for i in active]
    if primitive is forward_p:
        return leaves, results
    if primitive is tangent_p:
        return leaves + results + some, results
    return leaves + results + results, some


# ---- derivatives


def _forward_jvp(primals: Arrays, tangents: Sequence[Any], *, tree: Any, names: Any) -> Any:
    results = forward_p.bind(*primals, tree=tree, names=names)
    active, moving = _nonzero(primals, tangents)
    if not active:
        return results, [jnp.zeros_like(x) for x in results]
    derivative = tangent_p.bind(*primals, *results, *moving, tree=tree, names=names, active=active)
    return results, derivative


def _tangent_jvp(primals: Arrays, tangents: Any, *, tree: Any, names: Any, active: Any) -> Any:
    count = tree.num_leaves
    x, results, dx = primals[:count], primals[count : count + 2], primals[count + 2 :]
    settings = {"tree": tree, "names": names}
    out = tangent_p.bind(*primals, **settings, active=active)
    terms = []
    which, moving = _nonzero(dx, tangents[count + 2 :])
    if which:  # it is linear in dx
        chosen = tuple(active[i] for i in which)
        terms.append(tangent_p.bind(*x, *results, *moving, **settings, active=chosen))
    terms += _by_inputs(x, tangents[:count], dense.run_tangent, (tree, *results, *dx), active)
    return out, _sum(terms, out)


def _transpose_jvp(primals: Arrays, tangents: Any, *, tree: Any, names: Any, active: Any) -> Any:
    count = tree.num_leaves
    x, results, cts = primals[:count], primals[count : count + 2], primals[count + 2 :]
    settings = {"tree": tree, "names": names, "active": active}
    out = transpose_p.bind(*primals, **settings)
    terms = []
    moving = tangents[count + 2 :]
    if any(not isinstance(t, ad.Zero) for t in moving):  # it is linear in the cotangents
        moving = [ad.instantiate_zeros(t) for t in moving]
        terms.append(transpose_p.bind(*x, *results, *moving, **settings))
    terms += _by_inputs(x, tangents[:count], dense.run_transpose, (tree, *results, *cts), active)
    return out, _sum(terms, out)


def _by_inputs(x: Arrays, tangents: Any, function: Any, rest: Any, active: Any) -> list[Any]:
    """The derivative of one of the dense functions along tangents of the leaves, if there are."""
    which, moving = _nonzero(x, tangents)
    if not which:
        return []
    tree, *arguments = rest

    def of_chosen(*chosen: jax.Array) -> Any:
        replaced = dict(zip(which, chosen, strict=True))
        leaves = [replaced.get(i, leaf) for i, leaf in enumerate(x)]
        return function(leaves, tree, None, *arguments, active=active)

    return [jax.jvp(of_chosen, [x[i] for i in which], moving)[1]]


def _nonzero(primals: Arrays, tangents: Any) -> tuple[tuple[int, ...], list[Any]]:
    """The numbers of the tangents that are not known to be 0, and these."""
    chosen = [
        (i, tangent)
        for i, (primal, tangent) in enumerate(zip(primals, tangents, strict=True))
        if not isinstance(tangent, ad.Zero) and jnp.issubdtype(primal.dtype, jnp.inexact)
    ]
    return tuple(i for i, _ in chosen), [tangent for _, tangent in chosen]


def _sum(terms: list[Any], like: Any) -> list[Any]:
    if not terms:
        return [jnp.zeros_like(x) for x in like]
    return [functools.reduce(jnp.add, parts) for parts in zip(*terms, strict=True)]


def _forward_transpose(cts: Any, *args: Any, tree: Any, names: Any) -> Any:
    """Attention is linear in the values, and in nothing else."""
    linear = [i for i, x in enumerate(args) if ad.is_undefined_primal(x)]
    if linear != [VALUE]:
        raise NotImplementedError(
            "dot_product_attention: it is linear in the value alone, and cannot be transposed in "
            "another argument. Use jax.vjp."
        )
    value = args[VALUE].aval
    known = [jnp.zeros(value.shape, value.dtype) if i == VALUE else x for i, x in enumerate(args)]
    output, lse = forward_p.bind(*known, tree=tree, names=names)  # neither depends on the values
    d_output, _ = (ad.instantiate_zeros(ct) for ct in cts)
    settings = {"tree": tree, "names": names, "active": (VALUE,)}
    (d_value,) = transpose_p.bind(*known, output, lse, d_output, jnp.zeros_like(lse), **settings)
    return [d_value if i == VALUE else None for i in range(len(args))]


def _tangent_transpose(cts: Any, *args: Any, tree: Any, names: Any, active: Any) -> Any:
    known = args[: tree.num_leaves + 2]
    cts = [ad.instantiate_zeros(ct) for ct in cts]
    grads = transpose_p.bind(*known, *cts, tree=tree, names=names, active=active)
    linear = args[len(known) :]
    wanted = [g if ad.is_undefined_primal(a) else None for g, a in zip(grads, linear, strict=True)]
    return [None] * len(known) + wanted


def _transpose_transpose(cts: Any, *args: Any, tree: Any, names: Any, active: Any) -> Any:
    known = args[: tree.num_leaves + 2]
    linear = args[len(known) :]
    cts = [ad.instantiate_zeros(ct) for ct in cts]
    tangents = tangent_p.bind(*known, *cts, tree=tree, names=names, active=active)
    wanted = [
        t if ad.is_undefined_primal(a) else None for t, a in zip(tangents, linear, strict=True)
    ]
    return [None] * len(known) + wanted


ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_jvps[transpose_p] = _transpose_jvp
ad.primitive_transposes[forward_p] = _forward_transpose
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_transposes[transpose_p] = _transpose_transpose


# ---- batching


def _batch(primitive: Primitive, args: Any, dims: Any, *, tree: Any, **settings: Any) -> Any:
    """One more batch axis; or, where what is batched has no batch axis, one call after another."""
    active, count = settings.get("active", ()), tree.num_leaves
    axes, _ = _letters(primitive, tree, active)
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    # A leaf has the shape of its tangent; and the gradient of each example on its own needs an axis
    # of its own.
    whole = set(active)
    alone = primitive is transpose_p and any("b" not in axes[i] for i in whole)
    if alone or any(d is not None and "b" not in a for a, d in zip(axes, dims, strict=True)):
        return _one_by_one(primitive, args, dims, tree=tree, **settings)
    batched = []
    for i, (x, d, a) in enumerate(zip(args, dims, axes, strict=True)):
        if d is not None:
            x = jnp.moveaxis(x, d, 0)
        elif "b" in a:
            full = i < 3 or i >= count or i in whole
            x = jnp.broadcast_to(x, (size if full else 1, *x.shape))
        batched.append(x)
    out = primitive.bind(*batched, tree=tree, **settings)
    return out, [0] * len(out)


def _one_by_one(primitive: Primitive, args: Any, dims: Any, **settings: Any) -> Any:
    moved = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    moving = [x for x, d in zip(moved, dims, strict=True) if d is not None]

    def one(chosen: Any) -> Any:
        rest = iter(chosen)
        each = [x if d is None else next(rest) for x, d in zip(moved, dims, strict=True)]
        return primitive.bind(*each, **settings)

    results = jax.lax.map(one, moving)
    return results, [0] * len(results)


for _p in (forward_p, tangent_p, transpose_p):
    batching.primitive_batchers[_p] = functools.partial(_batch, _p)


# ---- lowering


def _lower(
    primitive: Primitive,
    method: str,
    platform: str | None,
    ctx: mlir.LoweringRuleContext,
    *args: Any,
    tree: Any,
    names: tuple[str, ...],
    **settings: Any,
) -> Any:
    """Lower by the implementation that serves the problem, divided among the module's devices."""
    count = tree.num_leaves
    problem = thaw(tree.unflatten(ctx.avals_in[:count]))
    chosen = IMPLEMENTATIONS[choose("dot_product_attention", problem, names, platform)]
    if is_divided(ctx) and not chosen.divisible:
        if platform in PARTITIONED:
            call = _call(primitive, problem, ctx.avals_in, tree=tree, names=names, **settings)
            if (divided := divide(ctx, call)) is not None:
                return lower_without_mesh(*divided, args)
        platform = None  # all batch elements and heads at once, which XLA can divide

    def run(*args: jax.Array) -> list[jax.Array]:
        function = getattr(chosen, method)
        return list(function(args[:count], tree, platform, *args[count:], **settings))

    return lower_without_mesh(run, ctx, args)


def _call(
    primitive: Primitive,
    problem: Problem,
    args: Any,
    *,
    tree: Any,
    active: Any = (),
    **settings: Any,
) -> Call:
    """The primitive as a function of arrays with named dimensions."""
    if primitive is not forward_p:
        settings["active"] = active

    def bind(args: Arrays, with_plan: bool) -> list[jax.Array]:
        leaves, rest = args[: tree.num_leaves], args[tree.num_leaves :]
        part = thaw(tree.unflatten(leaves))
        if not with_plan:
            part = dataclasses.replace(part, plan=None, plan_block=None)  # the last of the leaves
        leaves, part_tree = jax.tree.flatten(freeze(part))
        return primitive.bind(*leaves, *rest, tree=part_tree, **settings)

    letters, result_letters = _letters(primitive, tree, active)
    results = (
        _gradients(args, active)
        if primitive is transpose_p
        else _results(tree, args[: tree.num_leaves])
    )
    rank = len(problem.batch)
    _, _, num_heads, num_kv_heads = problem.sizes
    return Call(
        bind,
        [Dims.of(x.shape, a, rank) for x, a in zip(args, letters, strict=True)],
        [Dims.of(x.shape, a, rank) for x, a in zip(results, result_letters, strict=True)],
        num_heads // num_kv_heads,
    )


for _p, _method in ((forward_p, "forward"), (tangent_p, "tangent"), (transpose_p, "transpose")):
    for _platform in (None, *PLATFORMS):
        _rule = functools.partial(_lower, _p, _method, _platform)
        mlir.register_lowering(_p, _rule, platform=_platform)
