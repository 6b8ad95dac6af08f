"""Dropout by the number of a token: the same in any order, part and placement."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as jax_random
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flax_attn import Coords, Dropout, Sigmoid, attention, dot_product_attention, masks
from flax_attn.coords import unzigzag, zigzag
from tests.oracles import attention as oracles
from tests.runs import some_by_default
from tests.small_blocks import IMPLEMENTATIONS
from tests.tolerances import FORWARD, assert_close

B, L, N, K, D = 2, 320, 2, 1, 4
DROPOUT = Dropout(0.5, jax.random.key(3))
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
blockwise_by_default = pytest.mark.parametrize(
    "implementation", some_by_default(IMPLEMENTATIONS, "blockwise")
)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


Q, KEY, V = draw(B, L, N, D), draw(B, L, K, D, seed=1), draw(B, L, K, D, seed=2)


def pattern(implementation, coords, dropout=DROPOUT):
    """Which weights are kept `[B, N, T, S]`: all scores are 0, and each value is its own unit."""
    length = len(coords)
    q, k = jnp.zeros((B, length, N, D)), jnp.zeros((B, length, 1, D))
    v = jnp.broadcast_to(jnp.eye(length)[:, None], (B, length, 1, length))
    out = dot_product_attention(
        q,
        k,
        v,
        dropout=dropout,
        query_coords=coords,
        key_coords=coords,
        implementation=implementation,
    )
    return np.swapaxes(np.asarray(out) > 0, 1, 2)


@blockwise_by_default
def test_tokens_are_dropped_by_their_number_whatever_their_positions(implementation):
    """Packed documents that restart, equal positions, a tree, padding, a grid."""
    numbers = np.arange(L)
    expected = np.asarray(DROPOUT.keep((B,), jnp.arange(N), numbers, numbers))
    ids = jnp.asarray(numbers // 80)
    for coords in (
        Coords.arange(L),
        Coords.from_segments(ids),
        Coords.from_segments(jnp.stack([ids, ids]), restart=True),
        Coords.from_lengths(jnp.array([L, L]), L),
        Coords.grid(16, 20),
        Coords.tree([-1] + [0] * (L - 1)),
        Coords(jnp.zeros(L, int)),
        Coords(-numbers).with_features(valid=np.ones(L, bool)),
    ):
        np.testing.assert_array_equal(pattern(implementation, coords), expected, str(coords))
    first, second = expected[..., :80, :80], expected[..., 80:160, 80:160]
    assert abs(np.mean(first == second) - 0.5) < 0.02  # of two documents
    assert abs(np.mean(expected[..., 1, :] == expected[..., 2, :]) - 0.5) < 0.1  # of siblings


def attend(q, k, v, query_coords, key_coords, implementation="dense", **options):
    given = {"mask": masks.Causal(), "dropout": DROPOUT, "normalizer": Sigmoid()} | options
    return dot_product_attention(
        q,
        k,
        v,
        query_coords=query_coords,
        key_coords=key_coords,
        implementation=implementation,
        **given,
    )


@blockwise_by_default
def test_parts_and_other_orders_drop_what_the_whole_does(implementation):
    ids = np.arange(L) // 100
    mask = masks.Causal() & masks.SameSegment()
    f = jax.jit(functools.partial(attend, implementation=implementation, mask=mask))
    c = Coords.from_segments(ids, restart=True)
    numbers = np.arange(L)
    keep = DROPOUT.keep((B,), jnp.arange(N), numbers, numbers)
    position = numbers % 100
    seen = (position <= position[:, None]) & (numbers // 100 == numbers[:, None] // 100)
    products = np.einsum("btnd,bsnd->bnts", Q, np.repeat(KEY, N, axis=2)) / 2
    expected, _ = oracles.attend(
        products, V, seen, normalizer="sigmoid", keep=np.asarray(keep), rate=0.5
    )
    whole = f(Q, KEY, V, c, c)
    assert_close(whole, expected, FORWARD["float32"])
    chunks = [f(Q[:, own], KEY, V, c[own], c) for own in (slice(0, 160), slice(160, L))]
    assert_close(jnp.concatenate(chunks, axis=1), whole, FORWARD["float32"])
    parts = [f(Q, KEY[:, own], V[:, own], c, c[own]) for own in (slice(0, 160), slice(160, L))]
    assert_close(sum(parts), whole, FORWARD["float32"])
    moved = zigzag((Q, KEY, V, c), 4)
    assert_close(unzigzag(f(*moved, moved[-1]), 4), whole, FORWARD["float32"])
    order = np.random.default_rng(0).permutation(L)
    assert_close(f(Q[:, order], KEY, V, c[order], c), whole[:, order], FORWARD["float32"])
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], -1), c[:30], c[30:])
    assert_close(f(Q, KEY, V, joined, joined), whole, FORWARD["float32"])


@blockwise_by_default
def test_decoding_drops_what_the_whole_pass_does(implementation):
    c = Coords.arange(L)
    whole = attend(Q, KEY, V, c, c, implementation)
    steps = jnp.array([17, 301])
    rows = jnp.stack([Q[b, steps[b]] for b in range(B)])[:, None]
    expected = jnp.stack([whole[b, steps[b]] for b in range(B)])[:, None]
    for now in (Coords.arange(1, steps), Coords(steps[:, None], numbers=steps[:, None])):
        assert_close(attend(rows, KEY, V, now, c, implementation), expected, FORWARD["float32"])


def test_a_scan_over_chunks_of_the_coordinates_drops_what_the_whole_does():
    c = Coords.from_segments(jnp.asarray(np.arange(L) // 100), restart=True)
    chunks = jax.tree.map(lambda x: x.reshape(4, 80), c)
    queries = jnp.moveaxis(Q.reshape(B, 4, 80, N, D), 1, 0)
    _, out = jax.lax.scan(
        lambda _, x: (None, attend(x[0], KEY, V, x[1], c)), None, (queries, chunks)
    )
    out = jnp.moveaxis(out, 0, 1).reshape(Q.shape)
    assert_close(out, attend(Q, KEY, V, c, c), FORWARD["float32"])


def test_a_sequence_over_devices_drops_what_one_device_does():
    mesh = jax.make_mesh((4,), ("seq",), axis_types=(AxisType.Auto,))
    c = Coords.from_segments(jnp.asarray(np.arange(L) // 100), restart=True)
    ids = {"head_ids": jnp.arange(N)}
    dropout = Dropout(0.5, DROPOUT.key, batch_ids=jnp.arange(B))

    def local(q, k, v, own, c):
        return attend(q, k, v, own, c, dropout=dropout, **ids)

    rows = P(None, "seq")
    f = jax.shard_map(local, mesh=mesh, in_specs=(rows, P(), P(), P("seq"), P()), out_specs=rows)
    expected = attend(Q, KEY, V, c, c)
    assert_close(jax.jit(f)(Q, KEY, V, c, c), expected, FORWARD["float32"])

    def local_positions(q, k, v, positions, c, numbers=None):
        return attend(q, k, v, Coords(positions, numbers=numbers), c, dropout=dropout, **ids)

    def counted(*arguments):
        numbers = jax.lax.axis_index("seq") * (L // 4) + jnp.arange(L // 4)
        return local_positions(*arguments, numbers=numbers)

    f = functools.partial(jax.shard_map, mesh=mesh, out_specs=rows)
    f = functools.partial(f, in_specs=(rows, P(), P(), P("seq"), P()))
    assert_close(jax.jit(f(counted))(Q, KEY, V, c.positions, c), expected, FORWARD["float32"])
    with pytest.raises(ValueError, match=r"dropout needs the number of each token.*numbers=jnp"):
        jax.jit(f(local_positions))(Q, KEY, V, c.positions, c)


def test_masks_do_not_see_the_numbers():
    same = masks.relation(lambda q, k: q.numbers == k.numbers)
    with pytest.raises(ValueError, match="only dropout can"):
        attend(Q, KEY, V, Coords.arange(L), Coords.arange(L), mask=same())


@blockwise_by_default
def test_at_rate_1_all_is_dropped_and_nothing_has_a_gradient(implementation):
    def f(rate, q, k, v):
        dropout = Dropout(rate, jax.random.key(0))
        return dot_product_attention(q, k, v, dropout=dropout, implementation=implementation)

    def loss(*x):
        output = f(*x)
        return jnp.sum(jnp.cos(output)), output

    for rate in (1.0, np.float32(1)):
        assert (np.asarray(f(rate, Q, KEY, V)) == 0).all()
    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))
    for x in jax.tree.leaves(gradients(np.float32(1), Q, KEY, V)):
        assert (np.asarray(x) == 0).all()


@every_implementation
def test_the_rate_has_the_gradient_of_its_factor(implementation):
    """O ∝ 1 / (1 − rate) for a fixed pattern, so dO / d rate = O / (1 − rate)."""

    def f(rate, attend=dot_product_attention):
        dropout = Dropout(rate, jax.random.key(0))
        out = attend(Q, KEY, V, dropout=dropout, implementation=implementation)
        return getattr(out, "output", out)

    for attend in (dot_product_attention, attention.partial):
        out, slope = jax.jvp(functools.partial(f, attend=attend), (0.3,), (1.0,))
        assert_close(slope, out / 0.7, FORWARD["float32"])


@pytest.mark.parametrize("words", [1, 2, 3, 4, 5])
def test_a_generator_may_have_any_number_of_words(words):
    """As many keys as were made; the numbers of an even number of words are those of before."""
    impl = jax_random.define_prng_impl(
        key_shape=(words,),
        seed=lambda seed: jnp.full((words,), seed).astype(jnp.uint32),
        split=lambda key, shape: jnp.zeros((*shape, words), jnp.uint32),
        random_bits=lambda key, width, shape: jnp.zeros(shape, jnp.uint32),
        fold_in=lambda key, data: key,
        name=f"words{words}",
        tag=f"w{words}",
    )
    keys = [
        jax.random.wrap_key_data(jnp.arange(words, dtype=jnp.uint32) + i, impl=impl) for i in (0, 1)
    ]
    kept = [pattern("dense", Coords.arange(40), Dropout(0.5, key)) for key in keys]
    raw = Dropout(0.5, jax.random.key_data(keys[0]))
    chex.assert_trees_all_equal(kept[0], pattern("dense", Coords.arange(40), raw))
    assert abs(np.mean(kept[0]) - 0.5) < 0.05
    assert abs(np.mean(kept[0] == kept[1]) - 0.5) < 0.05
