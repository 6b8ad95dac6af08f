"""Bounds are never wrong: rules against all numbers of 8 bits, masks against their pairs."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flax_attn import Coords, make_plan, masks
from flax_attn._record import MissingFieldError, Record
from flax_attn.coords import to_record
from flax_attn.masks import _bounds as bd
from flax_attn.masks import _intervals as iv
from flax_attn.masks import _rules
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL, block_kinds
from tests.runs import some_by_default

T, S, BLOCK = 11, 10, (4, 3)  # both with a smaller last block
INT_MAX = 2**31 - 1

# Rules

BYTES = np.arange(-128, 128).astype(np.int8)
EDGES = [-128, -127, -64, -11, -2, -1, 0, 1, 2, 7, 11, 64, 126, 127]
BINARY = {
    "plus": (bd.plus, jnp.add),
    "minus": (bd.minus, jnp.subtract),
    "times": (bd.times, jnp.multiply),
    "floor_divide": (bd.floor_divide, jnp.floor_divide),
    "remainder": (bd.remainder, jnp.remainder),
    "divide": (bd.divide, lambda a, b: lax.div(*jnp.broadcast_arrays(a, b))),
    "rem": (bd.rem, lambda a, b: lax.rem(*jnp.broadcast_arrays(a, b))),
    "shift_right": (bd.shift_right, jnp.right_shift),
    "bitwise_and": (bd.bitwise_and, jnp.bitwise_and),
    "larger": (bd.larger, jnp.maximum),
    "smaller": (bd.smaller, jnp.minimum),
    "equal": (bd.equal, jnp.equal),
    "less": (bd.less, jnp.less),
    "at_most": (bd.at_most, jnp.less_equal),
}
UNARY = {
    "negative": (bd.negative, jnp.negative),
    "magnitude": (bd.magnitude, jnp.abs),
    "square": (functools.partial(bd.power, exponent=2), lambda x: lax.integer_pow(x, 2)),
    "cube": (functools.partial(bd.power, exponent=3), lambda x: lax.integer_pow(x, 3)),
    "to int32": (
        functools.partial(bd.convert, dtype=jnp.dtype("int32")),
        lambda x: x.astype(jnp.int32),
    ),
    "to uint8": (
        functools.partial(bd.convert, dtype=jnp.dtype("uint8")),
        lambda x: x.astype(jnp.uint8),
    ),
    "to float32": (
        functools.partial(bd.convert, dtype=jnp.dtype("float32")),
        lambda x: x.astype(jnp.float32),
    ),
    "to bool": (
        functools.partial(bd.convert, dtype=jnp.dtype("bool")),
        lambda x: x.astype(jnp.bool_),
    ),
}


def intervals(count, seed):
    """Random int8 intervals `[count]`: both ends at edges, or short, or any."""
    rng = np.random.default_rng(seed)
    lo = rng.integers(-128, 128, count)
    edges, other = rng.choice(EDGES, (2, count)), rng.integers(-128, 128, count)
    kind = rng.integers(0, 3, count)
    lo = np.where(kind == 0, edges[0], lo)
    hi = np.select([kind == 0, kind == 1], [edges[1], lo + rng.integers(0, 5, count)], other)
    lo, hi = np.minimum(lo, hi), np.maximum(lo, hi)
    return bd.Range(jnp.asarray(lo, jnp.int8), jnp.asarray(np.minimum(hi, 127), jnp.int8))


def inside(x):
    """Which of the 256 numbers an interval contains `[count, 256]`."""
    return (np.asarray(x.lo)[:, None] <= BYTES) & (np.asarray(x.hi)[:, None] >= BYTES)


def assert_contains(bounds, results, chosen):
    """Results `[...]` of the chosen operands `[count, ...]` lie within the bounds `[count]`."""
    lo, hi = (np.asarray(x) for x in bounds)
    for i, where in enumerate(chosen):
        values = results[where]
        if isinstance(bounds, bd.Truth):
            assert lo[i] or not values.any()
            assert values.all() or not hi[i]
        else:
            assert lo[i] <= values.min()
            assert values.max() <= hi[i]


@pytest.mark.parametrize("name", BINARY)
def test_a_rule_of_two_operands_contains_every_result_of_8_bit_integers(name):
    rule, function = BINARY[name]
    a, b = intervals(300, seed=1), intervals(300, seed=2)
    results = np.asarray(function(jnp.asarray(BYTES)[:, None], jnp.asarray(BYTES)[None]))
    chosen = inside(a)[:, :, None] & inside(b)[:, None, :]
    assert_contains(rule(a, b), results, chosen)


@pytest.mark.parametrize("name", UNARY)
def test_a_rule_of_one_operand_contains_every_result_of_8_bit_integers(name):
    rule, function = UNARY[name]
    x = intervals(600, seed=3)
    assert_contains(rule(x), np.asarray(function(jnp.asarray(BYTES))), inside(x))


def test_a_choice_follows_what_is_known_of_its_condition():
    low, high = bd.Range(jnp.int32(1), jnp.int32(2)), bd.Range(jnp.int32(8), jnp.int32(9))
    yes, no = bd.point(True), bd.point(False)
    perhaps = bd.Truth(yes.any, no.all)
    for condition, lo, hi in ((yes, 8, 9), (no, 1, 2), (perhaps, 1, 9)):
        assert _rules.select(None, condition, low, high) == (lo, hi)
        assert _rules.select(None, condition, no, yes) == condition
        assert _rules.select(None, condition, yes, no) == bd.negation(condition)
        assert _rules.select(None, condition, yes, yes) == yes
        assert _rules.select(None, condition, no, perhaps).all == no.all
    assert _rules.select(None, low, high, low, low) == (1, 9)


@pytest.mark.parametrize("name", ["plus", "minus", "times", "floor_divide", "remainder"])
def test_bounds_are_attained_where_nothing_wraps(name):
    rule, function = BINARY[name]
    a = intervals(250, seed=4)
    b = bd.point(jnp.asarray(7, jnp.int8))
    wide = np.asarray(function(jnp.asarray(BYTES, jnp.int32), jnp.asarray(7, jnp.int32)))
    lo, hi = (np.asarray(x) for x in rule(a, b))
    attained = 0
    for i, where in enumerate(inside(a)):
        values = wide[where]
        if values.min() >= -128 and values.max() <= 127:
            crosses = name == "remainder" and len(set(BYTES[where] // 7)) > 1
            expected = (0, 6) if crosses else (values.min(), values.max())
            assert (lo[i], hi[i]) == expected
            attained += 1
    assert attained > 30


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e30])
def test_float_rules_contain_the_results_of_random_numbers(scale):
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=(2, 200, 9)) * scale, jnp.float32)
    a, b = (bd.Range(x.min(axis=1), x.max(axis=1)) for x in points)
    pairs = {
        bd.plus: jnp.add,
        bd.minus: jnp.subtract,
        bd.times: jnp.multiply,
        bd.divide: jnp.divide,
    }
    for rule, function in pairs.items():
        bounds = rule(a, b)
        results = function(points[0][:, :, None], points[1][:, None, :])
        below = bounds.lo[:, None, None] > results
        above = bounds.hi[:, None, None] < results
        assert not (below | above).any()  # a NaN bound is neither
        assert not jnp.isnan(results[~jnp.isnan(bounds.lo)]).any()
    tight = np.asarray(bd.minus(a, b).lo == points[0].min(axis=1) - points[1].max(axis=1))
    assert tight.all() or scale == 1e30


def test_infinite_and_nan_bounds_decide_nothing():
    inf, nan = jnp.inf, jnp.nan
    x = bd.Range(jnp.asarray([-inf, nan, 0.0]), jnp.asarray([inf, nan, inf]))
    zero = bd.point(jnp.asarray(0.0))
    for bounds in (bd.plus(x, x), bd.minus(x, x), bd.times(x, zero), bd.divide(x, x)):
        truth = bd.less(bounds, zero)
        assert truth.any.all()
        assert not truth.all.any()
    assert not bd.equal(x, x).all.any()
    assert bd.negation(bd.equal(x, x)).any.all()  # x != x finds a NaN


# Masks


@masks.relation
def near(q, k, *, radius):
    return abs(q.positions - k.positions) <= radius


@masks.relation
def per_head(q, k, *, radius):
    return q.positions - k.positions < radius[q.head_ids]


@masks.relation
def later(q, k):
    return k.time <= q.time


@masks.relation
def warm(q, k, *, weight):
    return (q.time * weight - k.time) / 3.0 > q.positions.astype(jnp.float32) * 0.5


@masks.relation
def circle(q, k, *, radius):
    rows, columns = q.row - k.row, q.col - k.col
    return rows * rows + columns**2 <= radius


@masks.relation
def wraps(q, k, *, factor):
    return q.positions * factor + k.positions * 3 > k.positions - factor


@masks.relation
def branches(q, k):
    far = jnp.where(q.is_global, q.positions + 5, k.positions)
    return jnp.clip(far - k.positions, -2, 7) != jnp.sign(q.row) * jnp.maximum(k.col, 1)


@masks.relation
def bits(q, k):
    return ((q.positions >> 2) & 1 == k.positions & 1) ^ (lax.rem(q.positions, jnp.int32(5)) > -2)


@masks.relation
def table(q, k, *, values):
    return jnp.isin(q.row, values) | (values[2] <= k.positions) | ~jnp.isnan(k.time)


@masks.relation
def strange(q, k):
    return jnp.sin(q.time) > 0.3 * jnp.cos(k.time)


@masks.relation
def opaque_part(q, k):
    return (lax.population_count(q.positions) == 2) & (k.positions < 5)


@masks.relation
def constant(q, k):
    return jnp.asarray(True)


@masks.relation
def jitted(q, k, *, size):
    @jax.jit
    def remainder(a, b):  # not jnp.remainder, though it is called so
        return a * b

    @jax.checkpoint
    def body(a, b):
        return jax.nn.relu(a - b)

    return remainder(q.positions, size) < body(k.positions, q.row) // size


HEADS = jnp.array([2, 9], jnp.int32)
MASKS = [
    masks.Full(),
    masks.Empty(),
    masks.Causal(),
    masks.Window(3, 1),
    masks.Window(HEADS, None),
    masks.Dilated(6, 2),
    masks.Chunked(4),
    masks.Chunked(jnp.int32(3)),
    masks.Strided(3),
    masks.Strided(4, fixed=True, summary=2),
    masks.Prefix(4),
    masks.Prefix(),
    masks.SameSegment(),
    masks.Padding(),
    masks.GlobalTokens(),
    masks.Overlay(),
    masks.Interval(),
    masks.Tree(),
    masks.Neighborhood((4, 3), 3),
    masks.Neighborhood((4, 3), 2, is_causal=True),
    masks.Dense(jnp.asarray(np.random.default_rng(0).random((1, 2, T, S)) < 0.8)),
    masks.Selected(jnp.array([[[[0, -1], [0, 1], [0, 2]]]]), 4),
    near(radius=3),
    near(radius=jnp.int32(2)),
    per_head(radius=HEADS),
    later(),
    warm(weight=jnp.float32(1.3)),
    circle(radius=5),
    wraps(factor=1 << 29),
    branches(),
    bits(),
    table(values=jnp.array([0, 3, 7], jnp.int32)),
    strange(),
    opaque_part(),
    constant(),
    jitted(size=3),
]
COMPOSED = st.recursive(
    st.sampled_from(MASKS),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["&", "|", "^"]), inner, inner).map(
            lambda x: {"&": x[1] & x[2], "|": x[1] | x[2], "^": x[1] ^ x[2]}[x[0]]
        ),
        inner.map(lambda x: ~x),
    ),
    max_leaves=4,
)
KEPT = ("positions", "valid")
LAYOUTS = ["plain", "offset", "permuted", "striped", "scattered", "huge", "decode"]

CASES = [
    (("plain", "plain"), "all"),
    (("striped", "permuted"), "most"),
    (("decode", "scattered"), "all"),
    (("huge", "huge"), "all"),
]


def coordinates(layout, length, valid, rng, batch=1):
    """Coordinates with every feature that `MASKS` read."""
    index = np.arange(length)
    positions = {
        "plain": index,
        "offset": index + 5,
        "permuted": rng.permutation(length),
        "striped": index % 3 * 4 + index // 3,
        "scattered": rng.integers(-20, 20, length),
        "huge": rng.choice([0, 3, 2**30, INT_MAX, -INT_MAX, -INT_MAX - 1], length) - index % 2,
        "decode": np.full(length, 7),
    }[layout]
    shape = (batch, length)
    time = rng.normal(size=shape)
    if rng.random() < 0.3:
        time = np.where(rng.random(shape) < 0.1, rng.choice([np.nan, np.inf, -np.inf]), time)
    ids = rng.integers(0, 3, shape)
    enter = rng.integers(0, 6, length)
    features = {
        "is_global": rng.random(length) < 0.2,
        "prefix": np.full(shape, rng.integers(0, 6)),
        "image": rng.integers(-1, 2, length),
        "row": index // 3,
        "col": index % 3,
        "enter": enter,
        "leave": enter + rng.integers(0, 4, length),
        "lower": positions,
        "upper": positions + np.minimum(3, INT_MAX - positions),
        "time": np.asarray(time, np.float32),
    }
    arrays = {
        name: jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else None)
        for name, x in features.items()
    }
    positions = np.broadcast_to(positions, shape)
    sorted_ids = np.sort(ids) if rng.random() < 0.5 else ids
    keep = rng.random(shape) < {"all": 2.0, "most": 0.8, "few": 0.15}[valid]
    return Coords(
        jnp.asarray(positions.astype(np.int32)),
        jnp.asarray(sorted_ids.astype(np.int32)),
        jnp.asarray(keep),
        **arrays,
    )


@functools.cache
def records(layouts=("plain", "plain"), valid="all", seed=0):
    rng = np.random.default_rng(seed)
    q = coordinates(layouts[0], T, valid, rng)
    k = coordinates(layouts[1], S, valid, rng)
    return to_record(q, "query", 1, jnp.array([1, 0], jnp.int32)), to_record(k, "key", 1)


def pairs(mask, q, k):
    """The mask, pair by pair, with validity; broadcasts to `[1, N, T, S]`."""
    return mask(q, k) & q.valid & k.valid


def without_unread(mask, q, k):
    """The records without what the mask does not read, which would only take time."""
    read = iv.reads(mask, q, k) | {(side, x) for side in ("query", "key") for x in KEPT}
    return [
        Record(side, {name: x for name, x in record._fields.items() if (side, name) in read})
        for side, record in (("query", q), ("key", k))
    ]


def assert_sound(mask, kinds, seen):
    kinds, seen = np.broadcast_to(kinds, (1, 2, 3, 4)), np.broadcast_to(seen, (1, 2, T, S))
    for i in range(3):
        for j in range(4):
            tile = seen[..., i * 4 : i * 4 + 4, j * 3 : j * 3 + 3]
            kind = kinds[..., i, j]
            assert not (tile.any(axis=(-1, -2)) & (kind == EMPTY)).any(), (mask, i, j)
            assert not (~tile.all(axis=(-1, -2)) & (kind == FULL)).any(), (mask, i, j)


@pytest.mark.parametrize("number", some_by_default([15, 50], 15))
def test_a_composition_is_never_skipped_where_seen_nor_whole_where_hidden(number):
    @hypothesis.settings(max_examples=number, deadline=None, derandomize=True, database=None)
    @hypothesis.given(
        COMPOSED,
        st.sampled_from(LAYOUTS),
        st.sampled_from(LAYOUTS),
        st.sampled_from(["all", "most", "few"]),
        st.integers(0, 3),
    )
    def check(mask, query_layout, key_layout, valid, seed):
        q, k = without_unread(mask, *records((query_layout, key_layout), valid, seed))
        assert_sound(mask, block_kinds(mask, q, k, BLOCK), pairs(mask, q, k))

    check()


@jax.jit
def evaluate_all(q, k):
    """Kinds and pairs of every mask at once: one compilation."""
    return [(block_kinds(mask, q, k, BLOCK), pairs(mask, q, k)) for mask in MASKS]


@pytest.mark.parametrize(("layouts", "valid"), CASES, ids=str)
def test_each_mask_is_sound_in_every_layout(layouts, valid):
    for mask, found in zip(MASKS, evaluate_all(*records(layouts, valid)), strict=True):
        assert_sound(mask, *found)


def test_de_morgan_holds_for_kinds():
    q, k = records(("plain", "striped"), "most", 3)
    kinds = functools.partial(block_kinds, q=q, k=k, block=BLOCK)

    @jax.jit
    def both_sides(a, b):
        left = kinds(~(a & b)), kinds(~(a | b)), kinds(~~(a ^ b))
        return left, (kinds(~a | ~b), kinds(~a & ~b), kinds(a ^ b))

    for a in (near(radius=3), masks.Chunked(4), strange()):
        for b in (masks.Causal(), masks.SameSegment()):
            chex.assert_trees_all_equal(*both_sides(a, b))


def kinds_of(mask, positions, block=(1, 2)):
    """Kinds for queries and keys at the same positions."""
    coords = Coords(jnp.asarray(positions, jnp.int32))
    q, k = (to_record(coords, side, 1) for side in ("query", "key"))
    return np.asarray(block_kinds(mask, q, k, block))[0, 0]


def test_a_sum_that_may_wrap_is_partial_and_others_are_decided():
    @masks.relation
    def after(q, k):
        return q.place + 10 > k.place

    coords = Coords.arange(4).with_features(place=np.array([0, 1, INT_MAX - 5, INT_MAX - 4]))
    kinds = make_plan(after(), coords, block=(2, 2)).kinds[0, 0]
    chex.assert_trees_all_equal(kinds, np.array([[FULL, EMPTY], [PARTIAL, PARTIAL]]))


def test_the_distance_of_far_positions_does_not_wrap():
    """Positions count as at most 2³⁰ − 1; as a feature they may wrap, which is not decided."""
    positions = [-INT_MAX, -INT_MAX + 1, INT_MAX - 1, INT_MAX]
    for mask, wanted in (
        (masks.Window(10, 0), np.array([[FULL, EMPTY], [EMPTY, FULL]])),
        (masks.Causal(), np.array([[FULL, EMPTY], [FULL, FULL]])),
    ):
        chex.assert_trees_all_equal(kinds_of(mask, positions, (2, 2)), wanted)

    @masks.relation
    def near(q, k):
        return abs(q.place - k.place) <= 10

    coords = Coords.arange(4).with_features(place=np.array(positions))
    kinds = make_plan(near(), coords, block=(2, 2)).kinds[0, 0]
    chex.assert_trees_all_equal(kinds, np.array([[FULL, PARTIAL], [PARTIAL, FULL]]))


def test_an_unknown_primitive_makes_partial_and_is_named():
    q, k = records()
    kinds = block_kinds(opaque_part(), q, k, BLOCK)
    # Only k.positions < 5 is understood: keys 6 ... 9 are hidden from all.
    chex.assert_trees_all_equal(kinds[0, 0], np.array([[PARTIAL, PARTIAL, EMPTY, EMPTY]] * 3))
    assert iv.opaque(opaque_part(), q, k) == ("population_count",)
    assert iv.opaque(masks.Causal() & ~(strange() | opaque_part()), q, k) == (
        "sin",
        "cos",
        "population_count",
    )


def test_the_catalogue_is_understood():
    found = {repr(mask): iv.opaque(mask, *records()) for mask in MASKS}
    assert {name: unknown for name, unknown in found.items() if unknown} == {
        "opaque_part()": ("population_count",),
        "strange()": ("sin", "cos"),
    }


def test_asking_what_is_opaque_computes_nothing():
    rows = jax.ShapeDtypeStruct((1, 1, 10**6, 1), jnp.int32)
    columns = jax.ShapeDtypeStruct((1, 1, 1, 10**6), jnp.int32)
    q, k = Record("query", {"positions": rows}), Record("key", {"positions": columns})
    assert iv.opaque(masks.Causal() & opaque_part(), q, k) == ("population_count",)


def test_a_reordering_of_tokens_or_a_sum_over_them_is_not_trusted():
    q, k = records()

    @masks.relation
    def reversed_keys(q, k):
        return q.positions > k.positions[..., ::-1]

    @masks.relation
    def any_key(q, k):
        return jnp.any(k.positions > 3, axis=-1, keepdims=True) | (q.positions > 20)

    @masks.relation
    def transposed(q, k):
        return jnp.swapaxes(q.positions, -1, -2) >= k.positions[..., :1]

    @masks.relation
    def counted(q, k):
        return q.positions > jnp.arange(q.positions.shape[-2]).reshape(q.positions.shape) - 100

    every = (reversed_keys(), any_key(), transposed(), counted())
    find = jax.jit(lambda q, k: [block_kinds(mask, q, k, BLOCK) for mask in every])
    for kinds in find(q, k):
        assert (kinds == PARTIAL).all()


def test_a_function_called_like_a_division_is_not_taken_for_one():
    q, k = records()

    @masks.relation
    def pretends(q, k):
        @jax.jit
        def floor_divide(a, b):
            return a - b

        return floor_divide(q.positions, 100) == 0

    @masks.relation
    def divides(q, k):
        return q.positions // 100 == 0

    assert (block_kinds(pretends(), q, k, BLOCK) == EMPTY).all()
    assert (block_kinds(divides(), q, k, BLOCK) == FULL).all()


def test_one_nan_hides_nothing_and_shows_nothing():
    time = jnp.array([0.0, 1.0, jnp.nan, 3.0, 4.0, 5.0, jnp.inf, 7.0])
    coords = Coords.arange(8).with_features(time=time)
    q, k = (to_record(coords, side, 1) for side in ("query", "key"))
    kinds = block_kinds(later(), q, k, (2, 2))[0, 0]
    expected = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [2, 1, 1, 0], [2, 1, 2, 1]])
    chex.assert_trees_all_equal(kinds, expected)


def test_float_arithmetic_is_never_taken_for_exact():
    coords = Coords.arange(4).with_features(time=jnp.full(4, 0.75, jnp.float32))
    q, k = (to_record(coords, side, 1) for side in ("query", "key"))

    @masks.relation
    def same(q, k, *, unit):
        return q.time == unit * 3.0  # a fused multiplication might round differently

    @masks.relation
    def same_without(q, k, *, unit):
        return q.time == unit

    for mask, kind in ((same(unit=jnp.float32(0.25)), PARTIAL), (same_without(unit=0.75), FULL)):
        assert (block_kinds(mask, q, k, (2, 2)) == kind).all()


def test_a_table_by_heads_is_looked_up_and_not_bounded():
    coords = Coords.arange(64)
    q = to_record(coords, "query", 1, jnp.array([1, 0], jnp.int32))
    k = to_record(coords, "key", 1)
    kinds = np.asarray(block_kinds(per_head(radius=jnp.array([8, 1000])), q, k, (8, 8)))
    chex.assert_shape(kinds, (1, 2, 8, 8))
    assert (kinds[0, 0] == FULL).all()  # head 1: every distance is below 1000
    chex.assert_trees_all_equal(kinds[0, 1, 3], np.array([0, 0, 1, 2, 2, 2, 2, 2]))


def test_a_mask_may_answer_for_blocks_itself():
    class Halves(masks.Mask):
        def __call__(self, q, k):
            return (q.positions < 8) == (k.positions < 8)

        def block_truth(self, q, k, blocks):
            assert isinstance(q.positions, bd.Range)
            assert blocks == ((16, 8), (16, 4))
            same = jnp.array([[True, True, False, False], [False, False, True, True]])[None, None]
            return bd.Truth(same, same)

    jax.tree_util.register_pytree_node(Halves, lambda x: ((), None), lambda *x: Halves())
    q, k = (to_record(Coords.arange(16), side, 1) for side in ("query", "key"))
    kinds = block_kinds(Halves() & ~masks.Empty(), q, k, (8, 4))
    chex.assert_trees_all_equal(kinds[0, 0], np.array([[2, 2, 0, 0], [0, 0, 2, 2]]))


def test_reads_lists_the_fields_that_a_mask_looks_at():
    q, k = records()
    position = {("query", "positions"), ("key", "positions")}
    assert iv.reads(masks.Causal(), q, k) == position
    segment = {("query", "segment_ids"), ("key", "segment_ids")}
    assert iv.reads(masks.Causal() & ~masks.SameSegment(), q, k) == position | segment
    assert iv.reads(masks.Window(HEADS), q, k) == position | {("query", "head_ids")}
    assert iv.reads(constant(), q, k) == set()
    without = Record("key", {"positions": k.positions})
    with pytest.raises(MissingFieldError, match="from_segments"):
        iv.reads(masks.SameSegment(), q, without)


def test_64_bit_mode_changes_nothing(x64):
    q, k = (
        to_record(Coords.arange(length), side, 1) for length, side in ((T, "query"), (S, "key"))
    )
    chex.assert_type(q.positions, jnp.int32)
    kinds = block_kinds(masks.Chunked(4) & near(radius=5), q, k, BLOCK)
    chex.assert_trees_all_equal(kinds[0, 0], np.array([[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 2]]))
