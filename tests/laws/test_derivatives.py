"""Transformations of attention are those of its formula: any derivative, batched in any way.

Each transformation is applied to the library's function and to a formula on whole arrays; their
results must be equal in float64.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Softmax, dot_product_attention, masks, scores
from tests.runs import long, some_by_default
from tests.small_blocks import IMPLEMENTATIONS, use_small_blocks
from tests.tolerances import GRADIENT, assert_close

B, T, S, N, K, D, DV = 2, 6, 7, 2, 1, 3, 2
COUNT = 3  # size of an axis that `vmap` maps over


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    use_small_blocks(monkeypatch, 4, 4, 1, 1)


SHAPES = {
    "query": (B, T, N, D),
    "key": (B, S, K, D),
    "value": (B, S, K, DV),
    "bias": (1, N, T, 1),
    "scale": (),
    "slopes": (N,),
    "cap": (),
    "times": (B, S),
    "sink": (N,),
}
WHOLE = {"left": np.int32(3), "segments": np.array([[0, 0, 0, 1, 1, 1, 1], [0] * 7], np.int32)}


def leaves(count=None, of=None):
    """The arguments; those named have an axis of `count` before the others."""
    x = {}
    for name, shape in SHAPES.items():
        lead = (count,) if count and (of is None or name in of) else ()
        offset = {"scale": 0.8, "cap": 3.0, "slopes": 0.3}.get(name, 0.0)
        x[name] = jnp.asarray(offset + 0.5 * draw(*lead, *shape, seed=len(name)))
    for name, whole in WHOLE.items():
        if count and (of is None or name in of):
            whole = np.stack([np.roll(whole + i * (name == "left"), i) for i in range(count)])
        x[name] = jnp.asarray(whole)
    return x


def remember(s, q, k, head_ids, *, slopes):
    return s - slopes[head_ids] * (k.times - q.positions.astype(s.dtype) / 4) ** 2


def by_library(implementation, x):
    """Output and LSE."""
    return dot_product_attention(
        x["query"],
        x["key"],
        x["value"],
        x["bias"],
        masks.Window(x["left"], 1) & masks.SameSegment(),
        scale=x["scale"],
        score_mod=scores.score_mod(remember, slopes=x["slopes"]) >> scores.SoftCap(x["cap"]),
        normalizer=Softmax(x["sink"]),
        query_coords=Coords(jnp.arange(T) + S - T, x["segments"][..., S - T :]),
        key_coords=Coords(jnp.arange(S), x["segments"], times=x["times"]),
        implementation=implementation,
        return_residual=True,
    )


def by_formula(x):
    if x["query"].ndim == 3:  # no batch
        per_token = ("query", "key", "value", "bias", "times", "segments")
        output, lse = by_formula({n: v[None] if n in per_token else v for n, v in x.items()})
        return output[0], lse[0]
    batch = x["query"].shape[0]
    i = jnp.arange(T, dtype=jnp.int32)[:, None] + S - T
    j = jnp.arange(S, dtype=jnp.int32)[None]
    near = (i - j <= x["left"]) & (i - j >= -1)
    segments = x["segments"]
    seen = near[None] & (segments[:, S - T :, None] == segments[:, None, :])
    s = x["scale"] * jnp.einsum("btnd,bskd->bnts", x["query"], x["key"]) + x["bias"]
    late = (x["times"][:, None, None] - i[None, None].astype(float) / 4) ** 2
    s = s - x["slopes"].reshape(1, N, 1, 1) * late
    s = jnp.where(seen[:, None], x["cap"] * jnp.tanh(s / x["cap"]), -jnp.inf)
    sink = jnp.broadcast_to(x["sink"].reshape(1, N, 1, 1), (batch, N, T, 1))
    lse = jax.nn.logsumexp(jnp.concatenate([s, sink], axis=-1), axis=-1)
    output = jnp.einsum("bnts,bskd->btnd", jnp.exp(s - lse[..., None]), x["value"])
    return output, jnp.swapaxes(lse, 1, 2)


def loss_of(function):
    def loss(x):
        output, lse = function(x)
        return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.cos(lse))

    return loss


def split(x):
    """Floating arguments, and the others."""
    return {n: x[n] for n in SHAPES}, {n: x[n] for n in WHOLE}


def of_floats(function, x):
    whole = split(x)[1]
    return lambda floats: function({**floats, **whole})


def direction(x, seed=30):
    return {n: jnp.asarray(draw(*v.shape, seed=seed)) for n, v in split(x)[0].items()}


# ---- what is done to a function, by name: from a function of `leaves` to a result


def grad(function, x):
    return jax.grad(of_floats(loss_of(function), x))(split(x)[0])


def jvp(function, x, dx=None):
    return jax.jvp(of_floats(function, x), split(x)[:1], (dx or direction(x),))


def linearize(function, x):
    result, pushed = jax.linearize(of_floats(function, x), split(x)[0])
    return result, pushed(direction(x)), pushed(direction(x, 31))


def vjp(function, x):
    result, pull = jax.vjp(of_floats(function, x), split(x)[0])
    return result, pull(jax.tree.map(jnp.ones_like, result))


def one_leaf_at_a_time(function, x):
    """The derivatives by a leaf on its own: no other tangent is there."""
    one = lambda name: functools.partial(jax.linearize, lambda v: function(x | {name: v}))
    pushed = {n: one(n)(x[n])[1] for n in ("query", "scale", "times")}
    along = {n: f(jnp.ones_like(x[n])) for n, f in pushed.items()}
    ones = jax.tree.map(jnp.ones_like, along["query"])
    return along, {n: jax.linear_transpose(f, x[n])(ones) for n, f in pushed.items()}


def grad_by_whole_numbers(function, x):
    return split(jax.grad(loss_of(function), allow_int=True)(x))[0]


def jvp_of_grad(function, x):
    gradient = lambda f: grad(function, {**f, **split(x)[1]})
    return jax.jvp(gradient, split(x)[:1], (direction(x),))


def grad_of_jvp(function, x):
    along = lambda f: jnp.sum(jvp(loss_of(function), {**f, **split(x)[1]}, direction(x))[1])
    return jax.grad(along)(split(x)[0])


def grad_of_grad(function, x):
    def inner(f):
        gradient = grad(function, {**f, **split(x)[1]})
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction(x))
        return sum(jax.tree.leaves(products))

    return jax.grad(inner)(split(x)[0])


def jvp_of_jvp(function, x):
    inner = lambda f: jvp(function, {**f, **split(x)[1]}, direction(x, 31))
    return jax.jvp(inner, split(x)[:1], (direction(x),))


def third_order(function, x):
    along = lambda f: jvp_of_grad(function, {**f, **split(x)[1]})[1]
    return jax.jvp(along, split(x)[:1], (direction(x, 33),))[1]


def few(function, x, name):
    return lambda v: loss_of(function)(x | {name: v})


def hessian(function, x):
    return {n: jax.hessian(few(function, x, n))(x[n]) for n in ("slopes", "cap", "times")}


def jacobians(function, x):
    """`vmap` of the linear maps alone: their inputs have no batch."""
    f = lambda v: function(x | v)
    chosen = {n: x[n] for n in ("slopes", "value", "scale")}
    return jax.jacfwd(f)(chosen), jax.jacrev(f)(chosen)


def checkpoint(function, x):
    return grad(jax.checkpoint(function), x), jvp(jax.checkpoint(function), x)


def checkpoint_everything(function, x):
    policy = jax.checkpoint_policies.everything_saveable
    return grad(jax.checkpoint(function, policy=policy), x)


def layers(function, x):
    """A scan over layers, each with a window, a table and a cap of its own."""

    def layer(query, per_layer):
        output, lse = function(x | {"query": query} | per_layer)
        return query + jnp.mean(output, axis=-1, keepdims=True), lse

    def run(floats):
        per_layer = {"left": jnp.array([1, 3, 9], jnp.int32), **floats}
        query, lse = jax.lax.scan(jax.checkpoint(layer), x["query"], per_layer)
        return jnp.sum(jnp.sin(query)) + jnp.sum(jnp.cos(lse))

    floats = {n: v for n, v in leaves(3, ["slopes", "cap"]).items() if n in ("slopes", "cap")}
    value, gradient = jax.value_and_grad(run)(floats)
    return value, gradient, jax.jvp(run, (floats,), (jax.tree.map(jnp.ones_like, floats),))


TRANSFORMATIONS = [
    grad,
    jvp,
    linearize,
    vjp,
    one_leaf_at_a_time,
    grad_by_whole_numbers,
    jvp_of_grad,
    grad_of_jvp,
    grad_of_grad,
    jvp_of_jvp,
    third_order,
    hessian,
    jacobians,
    checkpoint,
    checkpoint_everything,
    layers,
]


def check(transformation, implementation, x):
    library = functools.partial(by_library, implementation)
    compiled = [jax.jit(functools.partial(transformation, f))(x) for f in (library, by_formula)]
    actual, expected = compiled
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for (path, a), e in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        assert_close(a, e, 10 * GRADIENT["float64"], jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "transformation",
    some_by_default(TRANSFORMATIONS, grad, jvp, jvp_of_grad),
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_a_transformation_is_that_of_the_formula(implementation, transformation, x64):
    check(transformation, implementation, leaves())


# ---- vmap


def axes_of(of):
    return {name: 0 if of is None or name in of else None for name in (*SHAPES, *WHOLE)}


def vmaps(of):
    """`vmap` of the function, of its derivatives, and derivatives of it."""

    def transformation(function, x):
        mapped = lambda f: jax.vmap(functools.partial(f, function), (axes_of(of),))
        batched = jax.vmap(function, (axes_of(of),))
        results = {f.__name__: mapped(f)(x) for f in (grad, jvp)}
        results["grad of vmap"] = grad(batched, x)
        results["jvp of vmap"] = jvp(batched, x)
        return results

    return transformation


BATCHED = {
    "everything": None,
    "query": ["query"],
    "key and times": ["key", "times"],
    "bias": ["bias"],
    "slopes and sink": ["slopes", "sink"],
    "scale": ["scale"],
    "window": ["left"],
    "segments": ["segments"],
}


@pytest.mark.parametrize("of", some_by_default(BATCHED, "everything"))
@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_vmap_over(implementation, of, x64):
    check(vmaps(BATCHED[of]), implementation, leaves(COUNT, BATCHED[of]))


def twice(function, x):
    """Queries and window in one axis, keys and slopes in another, that of the results last."""
    outer, inner = axes_of(["query", "left"]), axes_of(["key", "slopes"])
    f = jax.vmap(jax.vmap(function, (inner,), -1), (outer,), -1)
    return f(x), grad(f, x)


def of_second_order(function, x):
    along = functools.partial(jvp_of_grad, function)
    return jax.vmap(along, (axes_of(["query", "slopes"]),))(x)


def by_examples(function, x):
    """`vmap` over the batch: the function itself sees no batch axis."""
    batch = ("query", "key", "value", "times", "segments")
    x = x | {"bias": x["bias"][0]}
    axes = {name: 0 if name in batch else None for name in x}
    alone = lambda f: jax.vmap(functools.partial(f, function), (axes,))(x)
    return alone(grad), alone(jvp), grad(jax.vmap(function, (axes,)), x)


@long
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_over_examples(implementation, x64):
    check(by_examples, implementation, leaves())


@long
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_of_vmap(implementation, x64):
    x = leaves(COUNT, ["query", "left", "key", "slopes"])
    check(twice, implementation, x)


@long
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_of_second_order(implementation, x64):
    check(of_second_order, implementation, leaves(COUNT, ["query", "slopes"]))
