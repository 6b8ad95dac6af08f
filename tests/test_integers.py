"""Integers beyond int32: an open bound, a refused id, a far position; none wraps."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, dot_product_attention, make_plan, masks, positions, scores
from flax_attn._integers import comparable, saturate
from flax_attn.coords import to_record
from flax_attn.masks.plan import EMPTY, FULL
from tests.oracles import attention as oracles
from tests.runs import some_by_default
from tests.small_blocks import IMPLEMENTATIONS, use_small_blocks
from tests.tolerances import FORWARD, assert_close

L, BLOCK = 200, 50
RNG = np.random.default_rng(0)
Q, V = (RNG.normal(size=(1, L, 2, 4)) for _ in range(2))
PLACES = np.arange(L, dtype=np.int64)
PLACES[RNG.permutation(L)[:9]] = np.repeat([-(2**31), 2**31 - 1, -(2**31) + 1], 3)
TIMES = 1_700_000_000 + RNG.integers(0, 100, L)  # seconds, more than 2³⁰ of them


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    use_small_blocks(monkeypatch, BLOCK, BLOCK)


def attend(implementation, coords=None, **options):
    q, v = jnp.asarray(Q, jnp.float32), jnp.asarray(V, jnp.float32)
    given = {} if coords is None else {"query_coords": coords, "key_coords": coords}
    return dot_product_attention(q, q, v, implementation=implementation, **given, **options)


def expected(seen, bias=0.0):
    products = np.einsum("btnd,bsnd->bnts", Q, Q) / 2 + bias
    return oracles.attend(products, V, seen)[0]


def records(query_coords, key_coords):
    heads = jnp.zeros(1, jnp.int32)
    return to_record(query_coords, "query", 0, heads), to_record(key_coords, "key", 0)


FAR = np.clip(PLACES, -(2**30) + 1, 2**30 - 1)
BACK = FAR[:, None] - FAR  # what no int32 can hold for the sentinels themselves
SENTINELS = {
    "Causal": (masks.Causal(), BACK >= 0),
    "Window to the left": (masks.Window(1, None), BACK <= 1),
    "Window to the right": (masks.Window(None, 3), BACK >= -3),
    "Window of both": (masks.Window(70, 70), abs(BACK) <= 70),
    "Window of each head": (masks.Window(np.array([1, 1]), None), BACK <= 1),
    "Strided": (
        masks.Causal() & masks.Strided(40),
        (BACK >= 0) & ((BACK < 40) | (BACK % 40 == 0)),
    ),
}


@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
@pytest.mark.parametrize("name", SENTINELS)
def test_a_sentinel_is_far_from_every_token(name, implementation):
    mask, seen = SENTINELS[name]
    actual = attend(implementation, Coords(PLACES), mask=mask)
    assert_close(actual, expected(seen), FORWARD["float32"])


def assert_sound(kinds, seen, block, message):
    """No block is empty where a pair is seen, or full where one is hidden."""
    count = len(seen) // block
    tiles = seen.reshape(count, block, count, block)
    kinds = np.asarray(kinds)
    assert not ((kinds == EMPTY) & tiles.any((1, 3))).any(), message
    assert not ((kinds == FULL) & ~tiles.all((1, 3))).any(), message


def test_plans_see_a_sentinel_as_far():
    coords = Coords(PLACES)
    find = functools.partial(make_plan, block=(BLOCK, BLOCK), head_ids=np.arange(2))
    find_all = jax.jit(lambda c: {name: find(mask, c) for name, (mask, _) in SENTINELS.items()})
    plans = find_all(coords)
    for name, (_, seen) in SENTINELS.items():
        assert_sound(plans[name].kinds, seen, BLOCK, name)
    mask, seen = SENTINELS["Window of both"]
    planned = attend("blockwise", coords, mask=mask, plan=plans["Window of both"])
    assert_close(planned, expected(seen), FORWARD["float32"])


@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_modifiers_see_a_sentinel_as_far(implementation):
    slopes = np.array([0.5, 0.1])
    table = np.linspace(-1, 1, 2 * 5 + 1)[:, None] * [1, 2]
    for mod, bias in (
        (scores.ALiBi(jnp.asarray(slopes, jnp.float32)), -slopes[:, None, None] * abs(BACK)),
        (
            scores.RelativeBias(jnp.asarray(table, jnp.float32)),
            np.moveaxis(table[np.clip(-BACK, -5, 5) + 5], -1, 0),
        ),
        (scores.DistanceBias(1.0, axes=("place",)), -1.0 * abs(PLACES[:, None] - PLACES)),
        (scores.DistanceBias(0.5, axes=("time",)), -0.5 * abs(TIMES[:, None] - TIMES)),
    ):
        coords = Coords(PLACES).with_features(place=PLACES, time=TIMES)
        actual = attend(implementation, coords, score_mod=mod)
        assert_close(actual, expected(True, bias), FORWARD["float32"])


def test_the_window_of_the_report():
    """Keys 1 to 3 of the values 1 to 4, and a sentinel that no one sees."""
    coords = Coords([0, 1, 2, -(2**31)])
    q, v = jnp.zeros((4, 1, 2)), jnp.arange(1.0, 5)[:, None, None]
    for implementation in IMPLEMENTATIONS:
        options = {"query_coords": coords, "key_coords": coords, "implementation": implementation}
        out = dot_product_attention(q, q, v, mask=masks.Window(1, None), **options)
        chex.assert_trees_all_close(out[:3, 0, 0], np.array([2, 2, 2.5]), rtol=1e-6)


OPEN = [sys.maxsize, 2**31 - 1, 2**80, np.int64(2**32), np.uint32(2**31), np.uint64(2**63)]
BOUNDS = {
    "Window": (lambda x: masks.Window(x, 0), masks.Causal()),
    "Window to the right": (lambda x: masks.Window(0, x), masks.Window(0, None)),
    "Window of n": (masks.Window.last_n, masks.Causal()),
    "Dilated": (lambda x: masks.Dilated(x, 3), masks.Dilated(10**6, 3)),
    "Dilated by": (lambda x: masks.Dilated(50, x), masks.Window(0, 0)),
    "Chunked": (masks.Chunked, masks.Full()),
    "Strided": (masks.Strided, masks.Causal()),
    "Strided, fixed": (lambda x: masks.Strided(x, fixed=True), masks.Causal()),
    "Prefix": (masks.Prefix, masks.Full()),
    "Selected": (lambda x: masks.Selected(jnp.zeros((1, 1), int), x), masks.Full()),
    "Neighborhood": (
        lambda x: masks.Neighborhood((x,), 5, axes=("positions",)),
        masks.Neighborhood((10**6,), 5, axes=("positions",)),
    ),
    "Neighborhood, dilated": (
        lambda x: masks.Neighborhood((x,), 5, dilation=3, axes=("positions",)),
        masks.Neighborhood((10**6,), 5, dilation=3, axes=("positions",)),
    ),
    "Neighborhood, causal": (
        lambda x: masks.Neighborhood((x,), x, is_causal=True, axes=("positions",)),
        masks.Causal(),
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_beyond_int32_is_open(name):
    make, same = BOUNDS[name]
    coords = Coords.arange(30)
    evaluate = jax.jit(lambda q, k: ([make(bound)(q, k) for bound in OPEN], same(q, k)))
    found, wanted = evaluate(*records(coords, coords))
    for bound, seen in zip(OPEN, found, strict=True):
        np.testing.assert_array_equal(*np.broadcast_arrays(seen, wanted), str(bound))


@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_arguments_beyond_int32_are_open(implementation):
    whole, to_the_left = (
        attend(implementation, **options) for options in ({}, {"local_window_size": (None, 0)})
    )
    for bound in (2**31, 2**32 + 1, 2**63):
        lengths = np.array([bound], np.uint64)
        for name in ("query_seq_lengths", "key_value_seq_lengths"):
            chex.assert_trees_all_equal(attend(implementation, **{name: lengths}), whole)
        for kind in (int, np.uint64):
            found = attend(implementation, local_window_size=(kind(bound), 0))
            chex.assert_trees_all_equal(found, to_the_left)
    seen = np.arange(L) < 5
    short = attend(implementation, key_value_seq_lengths=jnp.array([5], jnp.uint32))
    assert_close(short, expected(seen), FORWARD["float32"])


def test_bounds_that_are_traced_are_open_too(x64):
    q, v = jnp.zeros((4, 1, 2)), jnp.arange(1.0, 5)[:, None, None]
    by_window = jax.jit(lambda w: dot_product_attention(q, q, v, mask=masks.Window(w, 0)))
    by_length = jax.jit(lambda n: dot_product_attention(q, q, v, key_value_seq_lengths=n))
    by_place = jax.jit(
        lambda x: dot_product_attention(
            q, q, v, mask=masks.Window(1, None), query_coords=Coords(x), key_coords=Coords(x)
        )
    )
    for bound in (2**31, 2**32, 2**62):
        same = functools.partial(chex.assert_trees_all_close, rtol=1e-7)
        same(by_window(jnp.asarray(bound))[:, 0, 0], np.array([1, 1.5, 2, 2.5]))
        same(by_length(jnp.asarray([bound]))[:, 0, 0], np.full(4, 2.5))
        out = by_place(jnp.array([0, 1, 2, -bound]))
        same(out[:3, 0, 0], np.array([2, 2, 2.5]))
        # A traced id keeps its width, so that different ones stay different.
        ids = jax.jit(Coords.from_segments)(jnp.array([5, 5 + bound, 5, 5]))
        out = dot_product_attention(
            q, q, v, mask=masks.SameSegment(), query_coords=ids, key_coords=ids
        )
        same(out[:, 0, 0], np.array([8 / 3, 2, 8 / 3, 8 / 3]))


ARGUMENTS = {
    "segment_ids": lambda x: Coords(np.arange(2), segment_ids=x),
    "segment_ids of a pack": Coords.from_segments,
    "numbers": lambda x: Coords(np.arange(2), numbers=x),
    "image": lambda x: Coords.arange(2).with_features(image=x),
    "head_ids": lambda x: attend("dense", head_ids=x),
    "head_ids of a plan": lambda x: make_plan(masks.Full(), Coords.arange(2), head_ids=x),
    "batch_ids": lambda x: attend(
        "dense", dropout=Dropout(0.1, jax.random.key(0), batch_ids=x[1:])
    ),
    "parents": Coords.tree,
    "blocks": lambda x: masks.Selected(np.asarray([x]), 4),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_id_beyond_int32_is_refused(name):
    for number in (5 + 2**32, 2**63 - 1, -(2**40)):
        message = "one number per node" if name == "parents" else r"must (fit int32|be in −1 ...)"
        with pytest.raises(ValueError, match=message):
            ARGUMENTS[name](np.array([0, number]))
    with pytest.raises(TypeError, match=r"must be (an array of )?(integers|numbers)"):
        ARGUMENTS[name](np.array([0.0, 1.0]) if name != "image" else np.array(["a", None]))


def test_unsigned_ids_beyond_int32_are_refused_where_they_are_known():
    for ids in (np.array([0, 2**31], np.uint32), jnp.array([0, 2**31], jnp.uint32)):
        with pytest.raises(ValueError, match=r"got 0 ... 2147483648.*np\.unique"):
            Coords.from_segments(ids)
    kept = Coords.from_segments(np.array([7, 9], np.uint32)).segment_ids
    chex.assert_trees_all_equal(kept, np.array([7, 9], np.int32))


@pytest.mark.parametrize(
    "dtype", some_by_default([np.int64, np.int32, np.uint8, np.uint32], np.int64, np.uint8)
)
def test_features_of_any_integer_dtype(dtype, x64):
    """Small unsigned ones wrapped when subtracted, 64-bit ones did not mix with int32."""
    features = {
        "prefix": [2, 2, 2, 2],
        "lower": [0, 0, 0, 0],
        "upper": [1, 2, 3, 4],
        "image": [7, 7, 8, 8],
        "row": [0, 0, 1, 1],
        "col": [0, 1, 0, 1],
    }
    coords = Coords.arange(4)
    key_coords = coords.with_features(**{n: jnp.array(x, dtype) for n, x in features.items()})
    query_coords = key_coords.with_features(image=jnp.array(features["image"], np.int32))
    values = np.arange(1.0, 5)
    cases = [  # a mask, and the mean of the values that each query sees
        (masks.Prefix(), [1.5, 1.5, 2, 2.5]),
        (masks.Prefix(jnp.array(2, dtype)), [1.5, 1.5, 2, 2.5]),
        (masks.Interval(), [2.5, 3, 3.5, 4]),
        (masks.Overlay(), [1.5, 1.5, 3.5, 3.5]),
        (masks.Neighborhood((2, 2), 1), [1, 2, 3, 4]),
    ]

    @jax.jit
    def evaluate(masks, *coords):
        q, k = records(*coords)
        return [mask(q, k) for mask in masks], [make_plan(m, *coords, (2, 2)) for m in masks]

    seen, plans = evaluate([mask for mask, _ in cases], query_coords, key_coords)
    seen = [np.asarray(x).reshape(4, 4) for x in seen]
    for (mask, means), pairs, plan in zip(cases, seen, plans, strict=True):
        found = pairs @ values / pairs.sum(-1)
        np.testing.assert_allclose(found, means, rtol=1e-12, err_msg=repr(mask))
        assert_sound(plan.kinds, pairs, 2, repr(mask))

    of_length, _, interval, overlay, near = seen
    wanted = of_length & overlay | interval & near
    joined = masks.Prefix() & masks.Overlay() | masks.Interval() & masks.Neighborhood((2, 2), 1)
    q, v = jnp.zeros((4, 1, 2)), jnp.asarray(values)[:, None, None]
    given = {"mask": joined, "query_coords": query_coords, "key_coords": key_coords}
    for implementation in IMPLEMENTATIONS:
        out = dot_product_attention(q, q, v, implementation=implementation, **given)
        means = wanted @ values / wanted.sum(-1)
        chex.assert_trees_all_close(out[:, 0, 0], means, rtol=1e-12)

    table = jnp.arange(9.0)[:, None]
    by_table = scores.RelativeBias2D(table, window=(2, 2))
    by_places = by_table(
        jnp.zeros((1, 4, 4)), *records(key_coords, key_coords), jnp.zeros((1, 1, 1), int)
    )
    from_the_first = np.array([4.0, 3, 1, 0])
    chex.assert_trees_all_equal(by_places[0, 0], from_the_first)


def test_encodings_of_large_positions_do_not_wrap():
    with pytest.raises(ValueError, match="must lie in 0"):
        positions.learned(np.array([2**32 + 1]), jnp.eye(3))
    far = positions.sinusoidal(np.array([2**32]), 2)
    wanted = np.array([[np.sin(2.0**32), np.cos(2.0**32)]])
    chex.assert_trees_all_close(far, wanted, rtol=1e-7, atol=1e-5)


def test_saturation_keeps_what_fits():
    for dtype in (np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64):
        limits = np.iinfo(dtype)
        values = np.array([limits.min, 0, 7, limits.max], dtype)
        wanted = np.clip(values.astype(object), -(2**31), 2**31 - 1).astype(np.int64)
        chex.assert_trees_all_equal(saturate(values), wanted)
        with jax.enable_x64(True):
            chex.assert_trees_all_equal(jax.jit(saturate)(values), wanted)
            a, b = comparable(jnp.asarray(values), jnp.zeros(4, jnp.int32))
            chex.assert_type(a, b.dtype)
