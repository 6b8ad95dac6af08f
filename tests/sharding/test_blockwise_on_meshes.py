"""The blockwise implementation on eight devices, value and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import Coords, Dropout, Softmax, dot_product_attention, masks, scores
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, T, N, K, D = 4, 90, 8, 4, 8
RNG = np.random.default_rng(0)
Q, KEY, V = (RNG.normal(size=(B, T, n, D)).astype(np.float32) for n in (N, K, K))
IDS = np.sort(RNG.integers(0, 4, (B, T)), axis=-1)
SLOPES = (2.0 ** -np.arange(1, N + 1)).astype(np.float32)
HEADS = P("batch", None, "heads", None)


def attend(q, k, v, slopes, ids, head_ids=None, batch_ids=None):
    coords = Coords.from_segments(ids)
    return dot_product_attention(
        q,
        k,
        v,
        mask=masks.Causal() & masks.SameSegment(),
        score_mod=scores.ALiBi(slopes),
        query_coords=coords,
        key_coords=coords,
        normalizer=Softmax(jnp.float32(0.5)),
        dropout=Dropout(0.3, jax.random.key(9), batch_ids=batch_ids),
        head_ids=head_ids,
        implementation="blockwise",
    )


def value_and_gradients(f):
    def loss(*arguments):
        output = f(*arguments, IDS)
        return jnp.sum(jnp.sin(output)), output

    return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))


@functools.cache
def expected():
    return value_and_gradients(attend)(Q, KEY, V, SLOPES)


def check(actual):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected()), strict=True):
        assert_close(a, b, GRADIENT["float32"])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_jit_with_sharded_arguments(kind):
    mesh = jax.make_mesh((2, 4), ("batch", "heads"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, HEADS)) for x in (Q, KEY, V)]
        check(value_and_gradients(attend)(*placed, SLOPES))


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_keeps_slopes_and_dropout_of_every_head(check_vma):
    mesh = jax.make_mesh((2, 4), ("batch", "heads"), axis_types=(AxisType.Auto,) * 2)

    def local(q, k, v, slopes, ids):
        head_ids = jax.lax.axis_index("heads") * (N // 4) + jnp.arange(N // 4)
        batch_ids = jax.lax.axis_index("batch") * (B // 2) + jnp.arange(B // 2)
        return attend(q, k, v, slopes, ids, head_ids, batch_ids)

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(HEADS, HEADS, HEADS, P(), P("batch")),
        out_specs=HEADS,
        check_vma=check_vma,
    )
    check(value_and_gradients(split)(Q, KEY, V, SLOPES))


def test_pmap():
    def local(q, k, v):
        return dot_product_attention(q, k, v, is_causal=True, implementation="blockwise")

    grouped = [x.reshape(2, 2, *x.shape[1:]) for x in (Q, KEY, V)]
    actual = jax.pmap(jax.vmap(lambda *x: local(*x)))(*grouped)
    expected = jax.jit(local)(Q, KEY, V)
    assert_close(np.asarray(actual).reshape(Q.shape), expected, FORWARD["float32"])
