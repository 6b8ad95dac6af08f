"""Every cache against plain lists of tokens: pieces, steps, ragged batches, truncation, reset."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, Softmax, caches, dot_product_attention, masks, scores
from tests.oracles.caches import Sequences, rounded
from tests.runs import long
from tests.tolerances import FORWARD, assert_close

B, N, K, D, DV = 3, 4, 2, 8, 6
WINDOW, SINKS, SPARE = 5, 2, 3
OPTIONS = {
    "num_kv_heads": K,
    "head_dim": D,
    "value_head_dim": DV,
    "fields": {"segment_ids": jnp.int32},
}
SLOPES = np.float32([0.3, 0.2, 0.1, 0.05])
SINK = np.float32([0.5, -1.0, 0.0, 2.0])
REACH, CAP = 9, 4.0


def make(kind, batch=B, **options):
    options = OPTIONS | {"batch": batch} | options
    return {
        "contiguous": lambda: caches.KVCache.create(24, **options),
        "rolling": lambda: caches.RollingCache.create(
            WINDOW, num_sinks=SINKS, spare=SPARE, **options
        ),
        "paged": lambda: caches.PagedCache.create(19, 4, capacity=24, **options),
        "int8": lambda: caches.QuantizedCache.create(24, **options),
    }[kind]()


KINDS = ["contiguous", "rolling", "paged", "int8"]


def sees(q, k, i, j):
    near = 0 <= q["positions"] - k["positions"] <= REACH
    return near and q["segment_ids"] == k["segment_ids"]


def sees_rolling(q, k, i, j):
    return sees(q, k, i, j) and (i - WINDOW < j or j < SINKS)


def modify(s, q, k, n):
    biased = s - SLOPES[n] * abs(q["positions"] - k["positions"])
    return CAP * np.tanh(biased / CAP)


@jax.jit
def step(cache, query, key, value, coords):
    return cache.attend(
        query,
        key,
        value,
        coords,
        mask=masks.Causal() & masks.Window(REACH, None) & masks.SameSegment(),
        score_mod=scores.ALiBi(SLOPES) >> scores.SoftCap(CAP),
        normalizer=Softmax(jnp.asarray(SINK)),
    )


truncate = jax.jit(lambda cache, lengths: cache.truncate(lengths))
reset = jax.jit(lambda cache, where: cache.reset(where))


def draw(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


class Walk:
    """A cache and its oracle, and random things that are done to both."""

    def __init__(self, kind, seed):
        self.rng = np.random.default_rng(seed)
        self.kind, self.cache, self.oracle = kind, make(kind), Sequences(B)
        self.most = [0] * B  # how long each sequence has been since it was reset

    def append(self, length):
        rng, lengths = self.rng, np.array(self.oracle.lengths)
        valid = rng.random((B, length)) < 0.7  # holes and padding on both sides
        room = 24 - lengths if self.kind != "rolling" else np.full(B, 99)
        valid &= np.cumsum(valid, axis=1) <= room[:, None]
        positions = 2 * lengths[:, None] + np.cumsum(rng.integers(1, 3, (B, length)), axis=1)
        segments = (positions + rng.integers(0, 9, (B, 1))) // 12
        q, k, v = (draw(rng, B, length, *size) for size in ((N, D), (K, D), (K, DV)))
        q[~valid] = k[~valid] = v[~valid] = np.nan  # padding may hold anything
        fields = {"positions": positions, "segment_ids": segments}
        out, self.cache = step(self.cache, q, k, v, Coords(**fields, valid=valid))
        expected, stored = np.zeros(out.shape), rounded if self.kind == "int8" else np.asarray
        numbers = np.zeros((B, length), int)
        for b, t in np.argwhere(valid):
            each = {name: x[b, t] for name, x in fields.items()}
            numbers[b, t] = len(self.oracle.tokens[b])
            self.oracle.append(b, stored(k[b, t]), stored(v[b, t]), each)
        relation = sees_rolling if self.kind == "rolling" else sees
        for b, t in np.argwhere(valid):
            each = {name: x[b, t] for name, x in fields.items()}
            expected[b, t] = self.oracle.output(
                b, q[b, t], each, numbers[b, t], relation, modify, SINK
            )
        assert_close(out, expected, 2 * FORWARD["float32"])
        self.most = np.maximum(self.most, self.oracle.lengths)

    def truncate(self):
        lengths = np.array(self.oracle.lengths)
        least = 0 if self.kind != "rolling" else self.most - SPARE
        keep = np.maximum(lengths - self.rng.integers(0, 5, B), np.maximum(least, 0))
        self.cache = truncate(self.cache, keep)
        for b in range(B):
            self.oracle.truncate(b, keep[b])

    def reset(self):
        where = np.array(self.oracle.lengths) > self.rng.integers(5, 24)
        self.cache = reset(self.cache, where)
        for b in np.flatnonzero(where):
            self.oracle.truncate(b, 0)
            self.most[b] = 0

    def check(self):
        np.testing.assert_array_equal(self.cache.lengths, self.oracle.lengths)
        assert not np.any(self.cache.overflowed)


def walk(kind, seed, count):
    walk = Walk(kind, seed)
    for i in range(count):
        action = "piece" if i == 0 else walk.rng.choice(["piece", "step", "truncate", "reset"])
        {
            "piece": lambda: walk.append(4),
            "step": lambda: walk.append(1),
            "truncate": walk.truncate,
            "reset": walk.reset,
        }[action]()
        walk.check()
    assert step._cache_size() <= 2 * len(KINDS), "a step was traced again"


@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_of_pieces_steps_truncations_and_resets(kind):
    walk(kind, 0, 30)


@long
@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_of_them_at_length(kind, seed):
    walk(kind, seed, 120)


# ---- one pass over all tokens, and the same in pieces

CASES = {
    "two batch axes": ((2, 2), 2, "float32"),
    "no batch axis": ((), 2, "float32"),
    "one key head, in bfloat16": ((2,), 1, "bfloat16"),
}


def in_pieces(cache, attend, q, k, v, coords, pieces):
    outputs, first = [], 0
    for length in pieces:
        part = slice(first, first + length)
        rows = [x[..., part, :, :] for x in (q, k, v)]
        out, cache = attend(cache, *rows, None if coords is None else coords[part])
        outputs.append(out)
        first += length
    return jnp.concatenate(outputs, axis=-3)


@pytest.mark.parametrize("case", CASES)
def test_pieces_are_the_rows_of_one_pass(case):
    batch, heads, dtype = CASES[case]
    rng = np.random.default_rng(1)
    q, k, v = (
        jnp.asarray(draw(rng, *batch, 7, *size), dtype)
        for size in ((N, D), (heads, D), (heads, DV))
    )
    whole = jax.jit(functools.partial(dot_product_attention, is_causal=True))(q, k, v)
    for kind in KINDS:
        cache = make(kind, batch, num_kv_heads=heads, dtype=dtype, fields=None)
        if kind == "rolling":
            cache = caches.RollingCache.create(
                7, heads, D, value_head_dim=DV, batch=batch, dtype=dtype
            )
        attend = jax.jit(lambda cache, q, k, v, c: cache.attend(q, k, v, c, mask=masks.Causal()))
        steps = in_pieces(cache, attend, q, k, v, None, [5, 1, 1])
        assert steps.dtype == dtype
        tolerance = 3e-2 if kind == "int8" else FORWARD[dtype]
        assert_close(steps, whole, tolerance, f"{case}, {kind}")


@pytest.mark.parametrize("kind", ["contiguous", "rolling", "paged"])
def test_dropout_and_a_prefix_that_all_see(kind):
    """The same weights are dropped as in one pass. The first tokens see each other."""
    rng = np.random.default_rng(2)
    q, k, v = (draw(rng, 2, 7, *size) for size in ((N, D), (K, D), (K, DV)))
    coords = Coords.arange(7, offset=30).with_features(prefix=jnp.full(7, 33, jnp.int32))
    coords = coords.with_features(numbers=jnp.arange(7))
    dropout = Dropout(0.4, jax.random.key(3))
    mask = masks.Prefix()
    whole = jax.jit(
        lambda q, k, v: dot_product_attention(
            q, k, v, mask=mask, dropout=dropout, query_coords=coords, key_coords=coords
        )
    )(q, k, v)
    fields = {"prefix": jnp.int32}
    cache = make(kind, 2, fields=fields)
    if kind == "rolling":
        cache = caches.RollingCache.create(7, K, D, value_head_dim=DV, batch=2, fields=fields)
    attend = jax.jit(lambda cache, q, k, v, c: cache.attend(q, k, v, c, mask=mask, dropout=dropout))
    steps = in_pieces(cache, attend, q, k, v, coords, [3, 3, 1])
    assert_close(steps, whole, FORWARD["float32"])


@pytest.mark.parametrize("kind", KINDS)
def test_keys_values_and_coordinates_are_those_appended(kind):
    """For functions of attention of other packages."""
    rng = np.random.default_rng(3)
    k, v = draw(rng, B, 5, K, D), draw(rng, B, 5, K, DV)
    segments = np.repeat(np.arange(B), 5).reshape(B, 5)
    cache = make(kind).append(k, v, Coords(jnp.arange(5) + 7, segments))
    assert cache.keys.shape == (B, cache.capacity, K, D)
    where = np.asarray(cache.coords.valid)
    np.testing.assert_array_equal(where.sum(axis=1), 5)
    for found, given in ((cache.keys, k), (cache.values, v)):
        given = rounded(given) if kind == "int8" else given
        np.testing.assert_allclose(
            np.asarray(found)[where], given.reshape(-1, *given.shape[2:]), 1e-5
        )
    np.testing.assert_array_equal(np.asarray(cache.coords.positions)[where], list(range(7, 12)) * B)
    np.testing.assert_array_equal(np.asarray(cache.coords.segment_ids)[where], segments.reshape(-1))
    np.testing.assert_array_equal(cache.next_coords(2).positions, [[5, 6]] * B)
    np.testing.assert_array_equal(np.asarray(cache.reset().coords.valid), False)


@pytest.mark.parametrize("lengths", [(10,), (3, 7), (1,) * 10])
def test_a_rolling_cache_holds_the_last_tokens_of_its_window(lengths):
    """Whether it is filled by one piece longer than the window, by several, or token by token."""
    tokens = np.random.default_rng(0).normal(size=(10, 1, 2)).astype(np.float32)
    cache = caches.RollingCache.create(4, num_kv_heads=1, head_dim=2)
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        new = tokens[end - length : end]
        cache = cache.append(new, -new)
    is_held = np.asarray(cache.coords.valid)
    order = np.argsort(np.asarray(cache.coords.positions)[is_held])
    np.testing.assert_array_equal(np.asarray(cache.coords.positions)[is_held][order], [6, 7, 8, 9])
    np.testing.assert_array_equal(np.asarray(cache.keys)[is_held][order], tokens[6:])
    np.testing.assert_array_equal(np.asarray(cache.values)[is_held][order], -tokens[6:])
