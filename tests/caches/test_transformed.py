"""Caches in compiled programs: loops, layers, vmap, derivatives, donation, several devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import caches, dot_product_attention, masks
from tests.compiled import every_collective
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, T, N, K, D = 2, 6, 4, 2, 8
KINDS = {
    "contiguous": lambda batch=B: caches.KVCache.create(8, K, D, batch=batch),
    "rolling": lambda batch=B: caches.RollingCache.create(6, K, D, batch=batch),
    "paged": lambda batch=B: caches.PagedCache.create(6, 3, K, D, capacity=9, batch=batch),
    "int8": lambda batch=B: caches.QuantizedCache.create(8, K, D, batch=batch),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


Q, KEY, VALUE = draw(0, B, T, N, D), draw(1, B, T, K, D), draw(2, B, T, K, D)
WHOLE = jax.jit(lambda q, k, v: dot_product_attention(q, k, v, is_causal=True))


def attend(cache, q, k, v):
    return cache.attend(q, k, v, mask=masks.Causal())


def rows(x):
    """Steps first: `[T, B, 1, ...]`."""
    return np.moveaxis(x, 1, 0)[:, :, None]


@every_kind
def test_scan_over_steps_and_over_layers(kind):
    """The caches of two layers are stacked: the inner scan is over layers, the outer over steps."""
    cache = KINDS[kind]()
    layers = jax.tree.map(lambda x: jnp.stack([x, x]), cache)

    @jax.jit
    def run(layers, q, k, v):
        def step(layers, qkv):
            def layer(carry, of_layer):
                cache, sign = of_layer
                out, cache = attend(cache, qkv[0], qkv[1], sign * qkv[2])
                return carry, (cache, out)

            _, (layers, out) = jax.lax.scan(layer, None, (layers, jnp.float32([1, -2])))
            return layers, out

        return jax.lax.scan(step, layers, (q, k, v))

    layers, out = run(layers, rows(Q), rows(KEY), rows(VALUE))
    assert layers.lengths.tolist() == [[T] * B] * 2
    whole = np.asarray(WHOLE(Q, KEY, VALUE))
    tolerance = FORWARD["float32"] if kind != "int8" else 2e-2
    for sign, i in ((1, 0), (-2, 1)):
        assert_close(np.moveaxis(out[:, i, :, 0], 0, 1), sign * whole, tolerance)


@every_kind
def test_while_loop_and_vmap(kind):
    """Each example has a cache without batch axes; a loop runs until the cache has five tokens."""
    caches_ = jax.tree.map(lambda x: jnp.stack([x] * B), KINDS[kind](()))

    @jax.jit
    @jax.vmap
    def run(cache, q, k, v):
        def body(state):
            cache, _ = state
            row = [jax.lax.dynamic_slice_in_dim(x, cache.lengths, 1, axis=-3) for x in (q, k, v)]
            out, cache = attend(cache, *row)
            return cache, out

        return jax.lax.while_loop(
            lambda state: state[0].lengths < 5, body, (cache, jnp.zeros((1, N, D)))
        )

    cache, out = run(caches_, Q, KEY, VALUE)
    assert cache.lengths.tolist() == [5] * B
    tolerance = FORWARD["float32"] if kind != "int8" else 2e-2
    assert_close(out[:, 0], np.asarray(WHOLE(Q, KEY, VALUE))[:, 4], tolerance)


@pytest.mark.parametrize("kind", ["contiguous", "rolling", "paged"])
def test_gradients_are_those_of_the_full_pass(kind):
    """The cache holds stale values that are not numbers, behind the tokens."""
    cache = KINDS[kind]()
    stale = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x, cache
    )

    def by_cache(q, k, v):
        first, rest = ([x[:, part] for x in (q, k, v)] for part in (slice(4), slice(4, T)))
        out, cache = attend(stale, *first)
        outs = [out]
        for i in range(T - 4):
            out, cache = attend(cache, *(x[:, i : i + 1] for x in rest))
            outs.append(out)
        return jnp.concatenate(outs, axis=1)

    def gradients(function):
        loss = lambda x: jnp.sum(jnp.sin(function(*x)))
        return jax.jit(jax.grad(loss))((Q, KEY, VALUE))

    found, wanted = gradients(by_cache), gradients(WHOLE)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, GRADIENT["float32"])


@pytest.mark.parametrize("kind", ["contiguous", "rolling", "paged", "int8"])
def test_stale_values_that_are_not_numbers_reach_no_output(kind):
    """What truncation and reset leave behind, and what was never written."""
    cache = KINDS[kind]()
    step = jax.jit(attend)
    shorten = jax.jit(lambda c: c.truncate(jnp.array([2, 0])))
    hurt = np.full_like(KEY[:, :3], np.nan)
    _, cache = step(cache, Q[:, :3], KEY[:, :3], VALUE[:, :3])
    cache = shorten(cache)
    wanted, _ = step(cache, Q[:, :1], KEY[:, :1], VALUE[:, :1])
    _, after = step(cache, Q[:, :3], hurt, hurt)
    out, _ = step(shorten(after), Q[:, :1], KEY[:, :1], VALUE[:, :1])
    assert_close(out, wanted, FORWARD["float32"])
    _, after = step(cache, Q[:, :3], hurt, hurt)
    out, _ = step(after, Q[:, :1], KEY[:, :1], VALUE[:, :1])
    assert np.isnan(out).all()  # where they are visible, they show


def big(kind):
    """Caches that are much larger than what a step computes."""
    sizes = {"num_kv_heads": K, "head_dim": 64, "batch": B}
    return {
        "contiguous": lambda: caches.KVCache.create(4096, **sizes),
        "rolling": lambda: caches.RollingCache.create(4096, **sizes),
        "paged": lambda: caches.PagedCache.create(512, 16, capacity=4096, **sizes),
        "int8": lambda: caches.QuantizedCache.create(4096, **sizes),
    }[kind]()


@every_kind
def test_a_donated_cache_is_written_in_place(kind):
    cache = big(kind)
    row = jnp.ones((B, 1, K, 64))
    append = jax.jit(lambda cache, row: cache.append(row, row), donate_argnames="cache")
    memory = append.lower(cache, row).compile().memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes == size
    assert memory.temp_size_in_bytes < size / 20
    stores = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(cache.stored_keys)]
    for _ in range(3):
        cache = append(cache, row)
    found = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(cache.stored_keys)]
    assert found == stores
    assert append._cache_size() == 1
    assert cache.lengths.tolist() == [3] * B


@every_kind
def test_no_step_is_traced_again(kind):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(cache, q, k, v):
        return attend(cache, q, k, v)

    cache = KINDS[kind]()
    for i in range(3):
        _, cache = step(cache, *(x[:, i : i + 1] for x in (Q, KEY, VALUE)))
    cache = cache.reset(jnp.array([True, False])).truncate(2)
    step(cache, *(x[:, :1] for x in (Q, KEY, VALUE)))


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (P(None, "x"), "contiguous"),
        (P("x"), "contiguous"),
        *((spec, kind) for spec, kind in ((P(None, "x"), "rolling"), (P(None, "x"), "int8"))),
    ],
)
def test_no_key_or_value_travels_between_devices(spec, kind):
    """Batch or heads are divided among eight devices."""
    sizes = {"num_kv_heads": 8, "head_dim": D, "batch": 8}
    create = {
        "contiguous": lambda: caches.KVCache.create(1024, **sizes),
        "rolling": lambda: caches.RollingCache.create(1024, **sizes),
        "int8": lambda: caches.QuantizedCache.create(1024, **sizes),
    }[kind]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v = draw(3, 8, 1, 16, D), draw(4, 8, 1, 8, D), draw(5, 8, 1, 8, D)

    def place(path, x):
        by_batch = spec[0] is not None
        has_heads = jax.tree_util.keystr(path).startswith((".stored", ".of"))
        return jax.device_put(x, NamedSharding(mesh, spec if by_batch or has_heads else P()))

    cache = jax.jit(lambda c, x: c.append(x, x))(create(), draw(6, 8, 20, 8, D))
    placed = jax.tree_util.tree_map_with_path(place, cache)
    rows = NamedSharding(mesh, P("x") if spec[0] else P(None, None, "x"))
    given = [jax.device_put(x, rows) for x in (q, k, v)]
    compiled = jax.jit(attend).lower(placed, *given).compile()
    cache_size = 8 * 8 * 1024 * D
    assert max((n for _, n in every_collective(compiled)), default=0) < cache_size / 64
    wanted, after = jax.jit(attend)(cache, q, k, v)
    found, after_placed = compiled(placed, *given)
    assert_close(np.asarray(found), wanted, FORWARD["float32"])
    chex.assert_trees_all_close(jax.device_get(after_placed), jax.device_get(after), rtol=1e-6)
    sharding = jax.tree.leaves(after_placed.stored_keys)[0].sharding
    assert sharding.is_equivalent_to(jax.tree.leaves(placed.stored_keys)[0].sharding, 4)
