"""Heads and batch over eight devices: under jit with shardings, shard_map and pmap."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import (
    Coords,
    Dropout,
    Softmax,
    dot_product_attention,
    linen,
    maps,
    masks,
    multi_head_attention,
    nnx,
    positions,
    scores,
)
from tests.runs import some_by_default
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, T, N, K, D, M = 4, 6, 8, 4, 8, 24
RNG = np.random.default_rng(0)


def draw(*shape):
    return (RNG.normal(size=shape) / 2).astype(np.float32)


Q, KEY, V = draw(B, T, N, D), draw(B, T, K, D), draw(B, T, K, D)
BIAS, MASK = draw(1, N, T, T), RNG.random((B, 1, T, T)) < 0.8
SINK = draw(N)
X = draw(B, T, M)
HEADS = P("batch", None, "heads", None)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("batch", "heads"), axis_types=(kind, kind))


def causal(length):
    """Each device has whole sequences."""
    coords = Coords.arange(length)
    return {"is_causal": True, "query_coords": coords, "key_coords": coords}


def attend(q, k, v, bias, mask, sink, **options):
    options |= causal(T) | {"normalizer": Softmax(sink)}
    return dot_product_attention(q, k, v, bias, mask, **options)


def value_and_gradients(f, argnums):
    def loss(*arguments):
        output = f(*arguments)
        return jnp.sum(jnp.sin(output)), output

    return jax.jit(jax.grad(loss, argnums, has_aux=True))


ARGUMENTS = (Q, KEY, V, BIAS, MASK, SINK)
SPECS = (HEADS, HEADS, HEADS, P(None, "heads"), P("batch"), P("heads"))
DIFFERENTIABLE = (0, 1, 2, 3, 5)


def check(actual, expected):
    """Gradients relative to the largest: the softmax does not feel the bias of the keys."""
    (gradients, output), (wanted, expected) = jax.device_get((actual, expected))
    chex.assert_tree_all_finite(gradients)
    assert_close(output, expected, FORWARD["float32"])
    largest = max(np.max(np.abs(e)) for e in jax.tree.leaves(wanted))
    tolerance = GRADIENT["float32"] * largest
    chex.assert_trees_all_close(gradients, wanted, rtol=0, atol=tolerance)


@functools.cache
def attention_on_one_device():
    return value_and_gradients(attend, DIFFERENTIABLE)(*ARGUMENTS)


def place(arguments, specs, kind=AxisType.Auto):
    return jax.tree.map(
        lambda spec, a: jax.device_put(a, NamedSharding(mesh(kind), spec)),
        specs,
        tuple(arguments),
        is_leaf=lambda leaf: isinstance(leaf, P),
    )


def test_attention_under_jit_with_shardings():
    found = value_and_gradients(attend, DIFFERENTIABLE)(*place(ARGUMENTS, SPECS))
    check(found, attention_on_one_device())


def test_attention_with_explicit_mesh_axes():
    arguments = place(ARGUMENTS, SPECS, AxisType.Explicit)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        gradients, output = value_and_gradients(attend, DIFFERENTIABLE)(*arguments)
    assert output.sharding.spec == HEADS
    check((gradients, output), attention_on_one_device())


def test_attention_under_shard_map():
    sharded = jax.shard_map(attend, mesh=mesh(), in_specs=SPECS, out_specs=HEADS)
    found = value_and_gradients(sharded, DIFFERENTIABLE)(*ARGUMENTS)
    check(found, attention_on_one_device())


def test_attention_under_pmap():
    """Pairs of heads on four devices."""

    def split(a, axis):
        return jnp.moveaxis(a.reshape(*a.shape[:axis], 4, -1, *a.shape[axis + 1 :]), axis, 0)

    def sharded(q, k, v, bias, mask, sink):
        parts = split(q, 2), split(k, 2), split(v, 2), split(bias, 1), split(sink, 0)
        f = jax.pmap(
            lambda q, k, v, bias, sink, mask: attend(q, k, v, bias, mask, sink),
            in_axes=(0, 0, 0, 0, 0, None),
            devices=jax.devices()[:4],
        )
        out = f(*parts, mask)
        return jnp.moveaxis(out, 0, 2).reshape(q.shape)

    def loss(*arguments):
        output = sharded(*arguments)
        return jnp.sum(jnp.sin(output)), output

    found = jax.grad(loss, DIFFERENTIABLE, has_aux=True)(*map(jnp.asarray, ARGUMENTS))
    check(found, attention_on_one_device())


def test_dropout_is_the_same_on_every_device():
    dropout = Dropout(0.4, jax.random.key(0))
    expected = jax.jit(functools.partial(attend, dropout=dropout))(*ARGUMENTS)

    def local(*arguments):
        heads = jax.lax.axis_index("heads") * (N // 4) + jnp.arange(N // 4)
        batch = jax.lax.axis_index("batch") * (B // 2) + jnp.arange(B // 2)
        own = Dropout(0.4, jax.random.key(0), batch_ids=batch)
        return attend(*arguments, dropout=own, head_ids=heads)

    sharded = jax.shard_map(local, mesh=mesh(), in_specs=SPECS, out_specs=HEADS)
    assert_close(jax.jit(sharded)(*ARGUMENTS), expected, FORWARD["float32"])


WEIGHTS = {
    "query": {"kernel": draw(M, N, D), "bias": draw(N, D)},
    "key": {"kernel": draw(M, K, D), "bias": draw(K, D)},
    "value": {"kernel": draw(M, K, D), "bias": draw(K, D)},
    "out": {"kernel": draw(N, D, M), "bias": draw(M)},
}
WEIGHT_SPECS = {
    **{
        name: {"kernel": P(None, "heads"), "bias": P("heads")} for name in ("query", "key", "value")
    },
    "out": {"kernel": P("heads"), "bias": P()},
}
LOCAL = {"head_dim": D, "axis_name": "heads", "batch_axis_name": "batch", "out_features": M}


def whole(weights, x):
    layer = linen.MultiHeadAttention(num_heads=N, num_kv_heads=K, head_dim=D)
    return layer.apply({"params": weights}, x, is_causal=True)


def by_function(weights, x, axis_name="heads"):
    p = weights
    project = [maps.dense(p[n]["kernel"], p[n]["bias"]) for n in ("query", "key", "value")]
    out = maps.dense(p["out"]["kernel"], p["out"]["bias"], axes=2, axis_name=axis_name)
    return multi_head_attention(x, x, *project, out, **causal(T))


def by_linen(weights, x):
    layer = linen.MultiHeadAttention(num_heads=N // 4, num_kv_heads=K // 4, **LOCAL)
    return layer.apply({"params": weights}, x, is_causal=True)


def by_nnx(weights, x):
    def make():
        return nnx.MultiHeadAttention(
            N // 4, M, num_kv_heads=K // 4, **LOCAL, rngs=flax_nnx.Rngs(0)
        )

    graph, state = flax_nnx.split(flax_nnx.eval_shape(make))
    flax_nnx.replace_by_pure_dict(state, weights)
    return flax_nnx.merge(graph, state)(x, is_causal=True)


FACES = {"function": by_function, "linen": by_linen, "nnx": by_nnx}
MODULE_SPECS = {"in_specs": (WEIGHT_SPECS, P("batch")), "out_specs": P("batch")}


@functools.cache
def whole_on_one_device():
    return value_and_gradients(whole, (0, 1))(WEIGHTS, X)


@pytest.mark.parametrize("name", FACES)
def test_multi_head_attention_under_shard_map(name):
    sharded = jax.shard_map(FACES[name], mesh=mesh(), **MODULE_SPECS)
    check(value_and_gradients(sharded, (0, 1))(WEIGHTS, X), whole_on_one_device())


EVERYTHING = {
    "rotary": positions.Rotary(D),
    "mask": masks.Causal(),
    "score_mod": scores.ALiBi.for_heads(N),
    "sink": True,
    "output_gate": True,
    "normalize_qk": "rms",
}
MORE_WEIGHTS = WEIGHTS | {
    "gate": {"kernel": draw(M, N, D), "bias": draw(N, D)},
    "sink": SINK,
    "query_ln": {"scale": 1 + draw(D)},
    "key_ln": {"scale": 1 + draw(D)},
}
MORE_SPECS = WEIGHT_SPECS | {
    "gate": {"kernel": P(None, "heads"), "bias": P("heads")},
    "sink": P("heads"),
    "query_ln": {"scale": P()},
    "key_ln": {"scale": P()},
}


def test_rotary_sinks_and_gate_with_heads_on_four_devices():
    """The slopes of the score modifier are those of all heads, the sinks those of a device."""

    def one(weights, x):
        layer = linen.MultiHeadAttention(num_heads=N, num_kv_heads=K, head_dim=D, **EVERYTHING)
        return layer.apply({"params": weights}, x)

    def local(weights, x):
        layer = linen.MultiHeadAttention(
            num_heads=N // 4, num_kv_heads=K // 4, **LOCAL, **EVERYTHING
        )
        return layer.apply({"params": weights}, x)

    sharded = jax.shard_map(
        local, mesh=mesh(), in_specs=(MORE_SPECS, P("batch")), out_specs=P("batch")
    )
    actual = value_and_gradients(sharded, (0, 1))(MORE_WEIGHTS, X)
    check(actual, value_and_gradients(one, (0, 1))(MORE_WEIGHTS, X))


@pytest.mark.parametrize("name", some_by_default(["function", "linen", "nnx"], "function"))
def test_multi_head_attention_under_pmap(name):
    """Two heads and one key head on each of four devices."""
    axes = jax.tree.map(
        lambda spec: tuple(spec).index("heads") if "heads" in spec else None,
        WEIGHT_SPECS,
        is_leaf=lambda s: isinstance(s, P),
    )

    def split(a, axis):
        return a if axis is None else a.reshape(*a.shape[:axis], 4, -1, *a.shape[axis + 1 :])

    def sharded(weights, x):
        f = jax.pmap(
            FACES[name],
            "heads",
            in_axes=(axes, None),
            out_axes=None,
            devices=jax.devices()[:4],
        )
        return f(jax.tree.map(split, weights, axes, is_leaf=lambda leaf: leaf is None), x)

    def loss(*arguments):
        output = sharded(*arguments)
        return jnp.sum(jnp.sin(output)), output

    found = jax.grad(loss, (0, 1), has_aux=True)(*jax.tree.map(jnp.asarray, (WEIGHTS, X)))
    check(found, whole_on_one_device())


def test_multi_head_attention_under_jit_with_shardings():
    specs = (WEIGHT_SPECS, P("batch"))
    weights, x = place((WEIGHTS, X), specs)
    check(value_and_gradients(whole, (0, 1))(weights, x), whole_on_one_device())
    compiled = jax.jit(whole).lower(weights, x).compile().as_text()
    assert "all-reduce" in compiled  # the output's parts are summed
    assert "all-gather" not in compiled  # and nothing is brought together


@pytest.mark.parametrize("broadcast", [True, False])
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_dropout_in_the_modules_is_that_of_one_device(api, broadcast):
    options = {"dropout_rate": 0.4, "broadcast_dropout": broadcast, "deterministic": False}
    layer = linen.MultiHeadAttention(num_heads=N, num_kv_heads=K, head_dim=D, **options)
    local = {**LOCAL, **options}

    def by_linen(weights, x):
        module = linen.MultiHeadAttention(num_heads=N // 4, num_kv_heads=K // 4, **local)
        return module.apply({"params": weights}, x, dropout_rng=key)

    def by_nnx(weights, x):
        def make():
            return nnx.MultiHeadAttention(
                N // 4, M, num_kv_heads=K // 4, keep_rngs=False, **local, rngs=flax_nnx.Rngs(0)
            )

        graph, state = flax_nnx.split(flax_nnx.eval_shape(make))
        flax_nnx.replace_by_pure_dict(state, weights)
        return flax_nnx.merge(graph, state)(x, rngs=flax_nnx.Rngs(dropout=0))

    key = flax_nnx.Rngs(dropout=0).dropout()
    expected = jax.jit(lambda w, x: layer.apply({"params": w}, x, dropout_rng=key))(WEIGHTS, X)
    module = {"linen": by_linen, "nnx": by_nnx}[api]
    sharded = jax.shard_map(module, mesh=mesh(), **MODULE_SPECS)
    assert_close(jax.jit(sharded)(WEIGHTS, X), expected, FORWARD["float32"])
