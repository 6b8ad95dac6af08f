"""Decoding with a cache whose tokens or heads are split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import Softmax, caches, masks, scores
from flax_attn.sharded import AllReduce, Heads
from tests.compiled import every_collective
from tests.runs import some_by_default
from tests.tolerances import FORWARD, assert_close

B, CAPACITY, N, K, D = 2, 4096, 8, 4, 16
FILLED = 3000
KINDS = {"contiguous": caches.KVCache.create, "int8": caches.QuantizedCache.create}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def prompt(kind):
    cache = KINDS[kind](CAPACITY, num_kv_heads=K, head_dim=D, batch=B)
    return cache.append(draw(0, B, FILLED, K, D), draw(1, B, FILLED, K, D))


def step(cache, query, key, value, placement=None):
    return cache.attend(
        query,
        key,
        value,
        mask=masks.Window(2500, 0) | masks.Prefix(4),
        score_mod=scores.ALiBi.for_heads(N),
        normalizer=Softmax(sink=jnp.zeros(N)),
        placement=placement,
    )


LAYOUTS = {
    "tokens": (("seq",), P(None, None, "seq"), AllReduce("seq")),
    "heads": (("heads",), P(None, "heads"), Heads("heads")),
    "both": (
        ("heads", "seq"),
        P(None, "heads", "seq"),
        Heads("heads", inner=AllReduce("seq")),
    ),
}


@pytest.mark.parametrize("kind", some_by_default(KINDS, "contiguous"))
@pytest.mark.parametrize("layout", some_by_default(LAYOUTS, "tokens", "heads"))
def test_a_step_sends_no_more_than_its_result(layout, kind):
    """Cached keys and values stay where they are; and the new ones are written there."""
    axes, spec, placement = LAYOUTS[layout]
    mesh = jax.make_mesh(
        (4,) if len(axes) == 1 else (2, 2),
        axes,
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[:4],
    )
    cache, steps = prompt(kind), []
    new = [draw(seed, B, 1, heads, D) for seed, heads in ((2, N), (3, K), (4, K))]

    def place(x):
        """Arrays `[B, K, S, ...]` are split; coordinates and lengths are on all devices."""
        is_split = x.ndim >= 3 and x.shape[1:3] == (K, CAPACITY)
        return jax.device_put(x, NamedSharding(mesh, spec if is_split else P()))

    placed = jax.tree.map(place, cache)
    run = jax.jit(lambda cache, q, k, v: step(cache, q, k, v, placement.on(mesh)))
    program = run.lower(placed, *new).compile()
    output, after = program(placed, *new)
    steps.append(output)
    expected, alone = step(cache, *new)
    assert_close(output, expected, FORWARD["float32"])
    assert_close(after.keys, alone.keys, FORWARD["float32"])
    split = [x.sharding for x in jax.tree.leaves(after) if x.ndim >= 3 and x.shape[2] == CAPACITY]
    assert split
    assert all(s.is_equivalent_to(NamedSharding(mesh, spec), 4) for s in split)
    row = B * N * (D + 3)  # output, weight and two flags of each head
    sent = every_collective(program)
    assert all(size <= row for _, size in sent), sent
    if layout == "tokens":
        assert ("all-reduce", row) in sent
