"""Mask, modifiers and dropout on tiles: what their formulas say, and as little as possible there.

A tile is cut out of the arrays that `Pairs.outside` gives, as a kernel cuts it: rows are queries
and columns keys, or the reverse.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, Sigmoid, dot_product_attention, masks, scores
from flax_attn.attention import PallasTPU
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.problem import Structure
from flax_attn.attention._staged.pairs import Pairs
from flax_attn.attention._staged.program import Depends, NotStagedError
from flax_attn.coords import Aligned, PerHead
from tests.masks.test_catalogue import CATALOGUE, B, N, S, T, expected, random_coords
from tests.oracles import scores as oracle
from tests.tolerances import FORWARD, GRADIENT, assert_close

D = 2
TILE = slice(1, 6), slice(2, 9)  # queries and keys
TURNED = pytest.mark.parametrize("turned", [False, True], ids=["rows: queries", "rows: keys"])
KEY = jax.random.key(3)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def problem_of(mask=None, dtype="float32", **options):
    q, k = jnp.asarray(draw(B, T, N, D), dtype), jnp.asarray(draw(B, S, 1, D, seed=1), dtype)
    return normalize("attention", q, k, k, None, mask, **options)


def given_of(pairs, problem):
    return pairs.outside(problem, (-T, T + S))


def cut(pairs, arrays, b, n, turned):
    """What the tile of a head is given: numbers, and arrays like the tile."""
    tiles = []
    for given, array in zip(pairs.given, arrays, strict=True):
        x = array[b if array.shape[0] > 1 else 0, n if array.shape[1] > 1 else 0]
        if given.by_distance:
            distances = np.arange(S)[None] - np.arange(T)[:, None]
            x = x[0][distances + T]
        elif given.depends == Depends.HEAD:
            tiles.append(x[0, 0])
            continue
        x = jnp.broadcast_to(x, (T, S))[TILE]
        tiles.append(x.T if turned else x)
    return tiles


def tile_of(whole, b, n, turned):
    x = np.broadcast_to(whole, (B, N, T, S))[b, n][TILE]
    return x.T if turned else x


def on_every_head(pairs, arrays, turned, function, *wholes):
    """The results of a function of what a tile is given, and tiles of arrays; joined on [B, N]."""
    per_head = [
        function(cut(pairs, arrays, b, n, turned), *(tile_of(x, b, n, turned) for x in wholes))
        for b in range(B)
        for n in range(N)
    ]
    return np.stack([np.asarray(x) for x in per_head])


def every_tile(whole, turned):
    return np.stack([tile_of(whole, b, n, turned) for b in range(B) for n in range(N)])


STAGED = [name for name in CATALOGUE if name != "Selected"]


@functools.cache
def staged_mask(name, layout):
    query, key = random_coords(layout)
    problem = problem_of(CATALOGUE[name][0], query_coords=query, key_coords=key)
    pairs = Pairs(problem)
    return pairs, given_of(pairs, problem)


# ---- values


@TURNED
@pytest.mark.parametrize("layout", ["decode", "permuted"])
def test_a_mask_on_a_tile_is_its_predicate(layout, turned):
    query, key = random_coords(layout)
    valid = np.asarray(query.valid)[:, None, :, None] & np.asarray(key.valid)[:, None, None]
    like = np.zeros((B, N, T, S), np.float32)
    for name in STAGED:
        pairs, arrays = staged_mask(name, layout)
        seen = on_every_head(pairs, arrays, turned, lambda given, x: pairs.visible(given, x), like)
        formula = every_tile(expected(name, layout) & valid, turned)
        np.testing.assert_array_equal(seen, formula, err_msg=name)


@TURNED
@pytest.mark.parametrize("shape", [(B, N, T, S), (1, N, T, 1), (B, 1, 1, S), (1, 1, 1, 1)], ids=str)
def test_an_array_is_cut_as_the_scores_are(shape, turned):
    array, bias = draw(*shape) > 0, draw(*shape, seed=2).astype(np.float32)
    problem = problem_of(jnp.asarray(array), score_mod=scores.Bias(jnp.asarray(bias)))
    pairs = Pairs(problem)
    arrays, s = given_of(pairs, problem), draw(B, N, T, S, seed=3).astype(np.float32)
    seen = on_every_head(pairs, arrays, turned, lambda given, s: pairs.visible(given, s), s)
    np.testing.assert_array_equal(seen, every_tile(array, turned))
    modify = lambda given, s: pairs.modified(s, given, masked=False)
    found = on_every_head(pairs, arrays, turned, modify, s)
    np.testing.assert_array_equal(found, every_tile(s + bias, turned))


HEAD_IDS = np.array([4, 0, 2])
LEAVES = {
    "factor": 1 + 0.3 * draw(5),
    "growth": np.array(0.4),
    "cap": np.array(2.5),
    "slopes": 0.1 + 0.02 * draw(5),
    "table": draw(12, 5),
    "far": 0.3 + 0.1 * draw(5),
    "values": draw(B, 1, T, S),
    "row": draw(N, 1, S),
}


def bent(s, q, k, head_ids, *, factor, cap):
    head = factor[head_ids].astype(s.dtype)
    return jnp.sin(cap.astype(s.dtype) * s) * head + (q.x * k.y).astype(s.dtype)


def bent_by_oracle(s, i, j, place, factor, cap):
    return math.sin(cap * s) * factor[place["h"]] + i["x"] * j["y"]


# What makes a modifier of its leaves, its rule in Python, the leaves, settings, whether it takes
# coordinates.
MODIFIERS = {
    "Scale": (scores.Scale, oracle.scale, ["factor"], {}, True),
    "Temperature": (
        lambda x: scores.Temperature(3, x),
        lambda *a, growth: oracle.temperature(*a, attn_scale=growth, floor_scale=3),
        ["growth"],
        {},
        True,
    ),
    "SoftCap": (scores.SoftCap, oracle.soft_cap, ["cap"], {}, True),
    "ALiBi": (scores.ALiBi, oracle.alibi, ["slopes"], {}, True),
    "T5Bias": (
        lambda x: scores.T5Bias(x, max_distance=9),
        oracle.t5,
        ["table"],
        {"max_distance": 9, "bidirectional": True},
        False,
    ),
    "RelativeBias": (lambda x: scores.RelativeBias(x[:7]), None, ["table"], {}, False),
    "DistanceBias": (
        lambda x: scores.DistanceBias(x, ("x", "y")),
        lambda *a, far: oracle.distance(*a, weight=far, axes=("x", "y")),
        ["far"],
        {},
        True,
    ),
    "Forget": (
        lambda: scores.Forget("sums"),
        lambda *a: oracle.forget(*a, feature="sums"),
        [],
        {},
        True,
    ),
    "Bias": (scores.Bias, oracle.bias, ["values"], {}, False),
    "a row of a bias": (
        scores.Bias,
        lambda *a, row: oracle.bias(*a, values=row),
        ["row"],
        {},
        False,
    ),
    "a function": (
        lambda x, y: scores.score_mod(bent, factor=x, cap=y),
        bent_by_oracle,
        ["factor", "cap"],
        {},
        True,
    ),
    "a pipe": (
        lambda x, y, z: scores.ALiBi(x) >> scores.SoftCap(y) >> scores.Scale(z),
        lambda s, *a, slopes, cap, factor: oracle.scale(
            oracle.soft_cap(oracle.alibi(s, *a, slopes=slopes), *a, cap=cap), *a, factor=factor
        ),
        ["slopes", "cap", "factor"],
        {},
        True,
    ),
}


def fields_of_tokens():
    """Fields of queries and keys as NumPy has them; what differs between heads is [B, T, N]."""
    sides = []
    for length, first in ((T, 3), (S, 0)):
        positions = np.broadcast_to(np.arange(length) + first, (B, length))
        places = {axis: draw(B, length, seed=ord(axis)) for axis in "xy"}
        sums = -np.cumsum(draw(B, length, N, seed=5) ** 2, axis=1)
        sides.append({"positions": positions, "sums": sums, **places})
    return sides


def coords_of(fields):
    wrap = lambda x: PerHead(jnp.asarray(x)) if x.ndim == 3 else jnp.asarray(x)
    features = {name: wrap(x) for name, x in fields.items() if name != "positions"}
    return Coords(jnp.asarray(fields["positions"], jnp.int32), **features)


def modified_problem(name, x, dtype="float64", **options):
    make, _, leaves, _, takes_coords = MODIFIERS[name]
    sides = fields_of_tokens()
    if takes_coords:
        both = zip(("query_coords", "key_coords"), map(coords_of, sides), strict=True)
        options |= dict(both)
    score_mod = make(*(jnp.asarray(x[n]) for n in leaves))
    ids = jnp.asarray(HEAD_IDS, jnp.int32)
    return problem_of(score_mod=score_mod, dtype=dtype, head_ids=ids, **options)


def by_oracle(name, s):
    _, rule, leaves, settings, takes_coords = MODIFIERS[name]
    sides = fields_of_tokens()
    if not takes_coords:  # positions count from 0
        sides = [{"positions": np.arange(n)[None]} for n in (T, S)]
    given = {n: LEAVES[n] for n in leaves}
    if name == "RelativeBias":
        rule, given = oracle.relative, {"table": LEAVES["table"][:7]}
    return oracle.modify(rule, s, *sides, HEAD_IDS, **given, **settings)


@TURNED
@pytest.mark.parametrize("name", MODIFIERS)
def test_a_modifier_on_a_tile_is_its_formula(name, turned, x64):
    problem = modified_problem(name, LEAVES)
    pairs = Pairs(problem)
    arrays, s = given_of(pairs, problem), 2 * draw(B, N, T, S, seed=6)
    modify = lambda given, s: pairs.modified(jnp.asarray(s), given, masked=False)
    found = on_every_head(pairs, arrays, turned, modify, s)
    # The logarithm of T5's buckets is that of float32; the rest is float64.
    assert_close(found, every_tile(by_oracle(name, s), turned), FORWARD["float64"], name)


@TURNED
def test_scores_of_invisible_pairs_do_not_reach_a_modifier(turned):
    reciprocal = scores.score_mod(lambda s, q, k, head_ids: 1 / (s + 1))
    here = {"query_coords": Coords.arange(T), "key_coords": Coords.arange(S)}
    problem = problem_of(masks.Window(2, 2), score_mod=reciprocal, **here)
    pairs = Pairs(problem)
    s = np.where(np.arange(S) % 3 == 0, -1, 1).astype(np.float32)  # 1 / 0 where it is seen
    s = np.broadcast_to(np.where(np.arange(S) == 5, np.inf, s), (B, N, T, S))
    near = abs(np.arange(T)[:, None] - np.arange(S)) <= 2
    with np.errstate(divide="ignore"):
        formula = np.where(near & np.isfinite(s), 1 / (s + 1), np.where(np.isinf(s), s, 1))
    modify = lambda given, s: pairs.modified(s, given, masked=True)
    found = on_every_head(pairs, given_of(pairs, problem), turned, modify, s)
    np.testing.assert_array_equal(found, every_tile(formula, turned))


@TURNED
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0, np.float32(0.3)], ids=repr)
def test_dropout_on_a_tile_keeps_what_it_keeps_anywhere(rate, shared, turned):
    traced = jnp.asarray(rate) if isinstance(rate, np.floating) else rate
    dropout = Dropout(traced, KEY, broadcast=shared)
    problem = problem_of(dropout=dropout)
    pairs = Pairs(problem)
    ids = (np.arange(size, dtype=np.int32) for size in (N, T, S))
    kept = np.broadcast_to(np.asarray(dropout.keep((B,), *ids)), (B, N, T, S))
    weights = np.abs(draw(B, N, T, S)).astype(np.float32)
    drop = lambda given, weights: pairs.dropped(weights, given)
    found = on_every_head(pairs, given_of(pairs, problem), turned, drop, weights)
    formula = np.where(kept, weights / (1 - rate), 0) if rate < 1 else np.zeros_like(weights)
    assert_close(found, every_tile(formula, turned), FORWARD["float32"])
    assert (rate in (0, 1)) == (len(np.unique(kept)) == 1)


# ---- derivatives


def mask_of_pairs(name):
    """A mask of positions where a modified problem has coordinates, an array where it has none."""
    return masks.Window(3, 4) if MODIFIERS[name][4] else jnp.asarray(draw(B, 1, T, S) < 0.6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODIFIERS)
def test_derivatives_of_tiles_are_those_of_the_whole(name, masked, x64):
    """Along given arrays and scores; and cotangents of leaves from sums over tiles."""
    options = {"mask": mask_of_pairs(name)} if masked else {}
    problem = modified_problem(name, LEAVES, **options)
    pairs = Pairs(problem)
    leaves, structure = Structure.of(problem)
    floats = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating) and i > 2]

    def replaced(values):
        found = dict(zip(floats, values, strict=True))
        return structure.problem([found.get(i, x) for i, x in enumerate(leaves)])

    def whole(s, values):
        of = replaced(values)
        return of.modified(s, of.visible() if masked else None)

    def tiled(s, arrays):
        """The same, head by head, of the tile of all pairs."""
        found = []
        for b in range(B):
            for n in range(N):
                given = whole_tiles(pairs, arrays, b, n)
                found.append(pairs.modified(s[b, n], given, masked=masked))
        return jnp.stack(found).reshape(B, N, T, S)

    s, ds = (jnp.asarray(draw(B, N, T, S, seed=seed)) for seed in (7, 8))
    values = [leaves[i] for i in floats]
    changes = [jnp.asarray(draw(*x.shape, seed=9), x.dtype) for x in values]
    with jax.numpy_rank_promotion("allow"):
        expected_jvp = jax.jvp(whole, (s, values), (ds, changes))
        pulled = jax.vjp(whole, s, values)[1](ds)
    outside = lambda values: given_of(pairs, replaced(values))
    moving = pairs.moved_by(problem, floats)
    arrays = outside(values)

    def of_moving(s, moved):
        found = dict(zip(moving, moved, strict=True))
        return tiled(s, [found.get(i, x) for i, x in enumerate(arrays)])

    outside_moving = lambda values: [outside(values)[i] for i in moving]
    moved, changes = jax.jvp(outside_moving, (values,), (changes,))
    found_jvp = jax.jvp(of_moving, (s, moved), (ds, changes))
    for a, e in zip(found_jvp, expected_jvp, strict=True):
        assert_close(a, e, GRADIENT["float64"], name)
    d_scores, d_moved = jax.vjp(of_moving, s, moved)[1](ds)
    (d_values,) = jax.vjp(outside_moving, values)[1](d_moved)
    for a, e in zip([d_scores, *d_values], [pulled[0], *pulled[1]], strict=True):
        assert_close(a, e, GRADIENT["float64"], name)


def whole_tiles(pairs, arrays, b, n):
    """What the tile of all pairs of a head is given."""
    tiles = []
    for given, array in zip(pairs.given, arrays, strict=True):
        x = array[b if array.shape[0] > 1 else 0, n if array.shape[1] > 1 else 0]
        if given.by_distance:
            x = x[0][np.arange(S)[None] - np.arange(T)[:, None] + T]
        tiles.append(x[0, 0] if given.depends == Depends.HEAD else jnp.broadcast_to(x, (T, S)))
    return tiles


@pytest.mark.parametrize("name", MODIFIERS)
def test_only_what_a_leaf_moves_has_a_derivative(name):
    """A leaf moves the given arrays whose values change with it, or a smaller set of them."""
    problem = modified_problem(name, LEAVES, "float32", mask=mask_of_pairs(name))
    pairs = Pairs(problem)
    leaves, structure = Structure.of(problem)
    for i, leaf in enumerate(leaves):
        if i < 3 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        other = structure.problem(
            [x + jnp.ones_like(x) if j == i else x for j, x in enumerate(leaves)]
        )
        both = zip(given_of(pairs, problem), given_of(pairs, other), strict=True)
        changed = [j for j, (a, b) in enumerate(both) if not np.array_equal(a, b)]
        assert set(changed) <= set(pairs.moved_by(problem, [i]))


@jax.custom_jvp
def straight_through(x, gain, times):
    """Rounds; its derivative is 7 · times · ẋ + 2 · ġ, which is that of no function."""
    return jnp.round(x) * gain + 0 * times.astype(x.dtype)


@straight_through.defjvp
def _(primals, tangents):
    x, gain, times = primals
    dx, dg, _ = tangents
    return straight_through(x, gain, times), 7 * times.astype(x.dtype) * dx + 2 * dg


def test_a_derivative_rule_of_the_user_is_kept_in_tiles():
    def rounded(s, q, k, head_ids, *, gain):
        times = jnp.broadcast_to(q.positions, s.shape)
        return straight_through(s, jnp.broadcast_to(gain, s.shape), times)

    problem = problem_of(score_mod=scores.score_mod(rounded, gain=jnp.float32(3)))
    pairs = Pairs(problem)
    given = whole_tiles(pairs, given_of(pairs, problem), 0, 0)
    gains = [i for i, x in enumerate(pairs.given) if x.is_float]
    assert len(gains) == 1
    (gain,) = gains

    def f(s, value):
        return pairs.modified(
            s, [value if i == gain else x for i, x in enumerate(given)], masked=False
        )

    s = jnp.asarray(draw(T, S), jnp.float32)
    rows = np.broadcast_to(np.arange(T, dtype=np.float32)[:, None], (T, S))
    value, change = jax.jvp(f, (s, given[gain]), (jnp.ones_like(s), jnp.float32(0.5)))
    np.testing.assert_array_equal(value, 3 * np.round(s))
    np.testing.assert_array_equal(change, 7 * rows + 1)
    ds, dg = jax.vjp(f, s, given[gain])[1](jnp.ones_like(s))
    np.testing.assert_array_equal(ds, 7 * rows)
    assert dg == 2 * T * S


def test_relu_at_0_has_the_derivative_that_jax_gives_it():
    """0, where the derivative of a maximum of two equal numbers is 1/2."""
    problem = problem_of(score_mod=scores.score_mod(lambda s, q, k, head_ids: jax.nn.relu(s)))
    pairs = Pairs(problem)
    f = lambda s: pairs.modified(s, given_of(pairs, problem), masked=False)
    s = jnp.zeros((T, S))
    assert not jax.jvp(f, (s,), (s + 1,))[1].any()
    assert not jax.vjp(f, s)[1](s + 1)[0].any()


def test_a_derivative_rule_of_the_user_is_kept_outside_of_tiles():
    def by_key(s, q, k, head_ids, *, gain):
        x = k.positions.astype(s.dtype)
        return s + straight_through(x, jnp.broadcast_to(gain, x.shape), k.positions)

    problem = problem_of(score_mod=scores.score_mod(by_key, gain=jnp.float32(3)))
    pairs = Pairs(problem)
    assert {x.depends for x in pairs.given} == {Depends.KEY}
    leaves, structure = Structure.of(problem)
    (gain,) = (i for i, x in enumerate(leaves) if i > 2 and jnp.issubdtype(x.dtype, jnp.floating))

    def f(gain_value):
        changed = [gain_value if i == gain else x for i, x in enumerate(leaves)]
        return given_of(pairs, structure.problem(changed))[0]

    assert jnp.sum(jax.jvp(f, (leaves[gain],), (jnp.float32(1),))[1]) == 2 * S


# ---- what is computed where


INSIDE = {"abs", "add", "and", "eq", "ge", "gt", "le", "lt", "ne", "not", "or", "rem", "select_n"}
INSIDE |= {"neg", "sub", "xor"}


def equations_of_a_tile(pairs, function):
    """The equations of a tile, each with what its results depend on."""
    shapes = [
        jax.ShapeDtypeStruct(() if x.depends == Depends.HEAD else (8, 16), x.dtype)
        for x in pairs.given
    ]
    like = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    jaxpr = jax.make_jaxpr(function)(shapes, like).jaxpr
    depends = [*(x.depends for x in pairs.given), Depends.PAIR]
    known = dict(zip(jaxpr.invars, depends, strict=True))
    for equation in jaxpr.eqns:
        of_inputs = [known.get(x, Depends.HEAD) for x in equation.invars if not hasattr(x, "val")]
        found = functools.reduce(lambda a, b: a | b, of_inputs, Depends.HEAD)
        known.update(dict.fromkeys(equation.outvars, found))
        yield equation, found


@pytest.mark.parametrize("name", STAGED)
def test_only_relations_of_pairs_remain_in_a_tile(name):
    """Integers and booleans only; no number of a head, and no vector over tokens, is computed."""
    pairs, _ = staged_mask(name, "permuted")
    for equation, depends in equations_of_a_tile(pairs, lambda given, x: pairs.visible(given, x)):
        primitive = equation.primitive.name
        if primitive == "broadcast_in_dim":  # a number as a tile
            continue
        assert primitive in INSIDE, primitive
        assert depends == Depends.PAIR, equation
        kinds = {x.aval.dtype.kind for x in (*equation.invars, *equation.outvars)}
        assert kinds <= set("iub"), equation


@pytest.mark.parametrize("name", [*STAGED, *MODIFIERS])
def test_nothing_is_given_twice(name):
    if name in CATALOGUE:
        _, arrays = staged_mask(name, "permuted")
    else:
        problem = modified_problem(name, LEAVES, "float32", mask=mask_of_pairs(name))
        arrays = given_of(Pairs(problem), problem)
    seen = {(x.shape, x.dtype.name, np.asarray(x).tobytes()) for x in arrays}
    assert len(seen) == len(arrays)


@pytest.mark.parametrize("name", MODIFIERS)
def test_no_number_of_a_head_is_computed_in_a_tile(name):
    problem = modified_problem(name, LEAVES, "float32", mask=mask_of_pairs(name))
    pairs = Pairs(problem)
    modify = lambda given, s: pairs.modified(s, given, masked=True)
    for equation, depends in equations_of_a_tile(pairs, modify):
        if equation.primitive.name != "broadcast_in_dim":
            assert depends == Depends.PAIR, equation


def test_one_of_a_head_is_a_number_and_one_of_a_token_is_a_vector():
    mask = masks.Window(jnp.array([1, 2, 3]), 0) & masks.SameSegment()
    coords = Coords(jnp.arange(T), segment_ids=jnp.zeros(T, jnp.int32))
    keys = Coords(jnp.arange(S), segment_ids=jnp.zeros((B, S), jnp.int32))
    problem = problem_of(mask, query_coords=coords, key_coords=keys)
    pairs = Pairs(problem)
    shapes = sorted(x.shape for x in given_of(pairs, problem))
    # positions and segments of both sides, and how far a head sees
    assert shapes == sorted([(1, N, 1, 1), (1, 1, T, 1), (1, 1, T, 1), (1, 1, 1, S), (B, 1, 1, S)])


# ---- what cannot be staged


def mod(function, **parameters):
    return {"score_mod": scores.score_mod(function, **parameters)}


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, ct: (ct,))


def column(k, s):
    return k.positions.astype(s.dtype)


def distance_of(q, k):
    return jnp.clip(q.positions - k.positions, 0, 4)


HERE = {"query_coords": Coords.arange(T, 4), "key_coords": Coords.arange(S)}
CHOSEN = jnp.zeros((1, N, 2, 1), jnp.int32)
DECLINED = {
    "a maximum over keys": (
        lambda: mod(lambda s, q, k, h: s - jnp.max(s, -1, keepdims=True)),
        r"reduce_max of pairs of tokens is not elementwise\.",
    ),
    "a sum over queries": (
        lambda: mod(lambda s, q, k, h: s + jnp.sum(q.positions).astype(s.dtype)),
        r"reduce_sum may join several tokens\.",
    ),
    "a gather from the queries": (
        lambda: mod(
            lambda s, q, k, h: s + jnp.take(q.positions, jnp.arange(T), axis=-2).astype(s.dtype)
        ),
        r"gather may join several tokens\.",
    ),
    "a gather of pairs": (
        lambda: mod(lambda s, q, k, h, *, table: s + table[distance_of(q, k)], table=jnp.ones(5)),
        r"gather of pairs of tokens is not elementwise\.",
    ),
    "a cumulative sum over keys": (
        lambda: mod(lambda s, q, k, h: s + jnp.cumsum(column(k, s), axis=-1)),
        r"cumsum may join several tokens\.",
    ),
    "a cumulative sum of pairs": (
        lambda: mod(lambda s, q, k, h: jnp.cumsum(s, axis=-1)),
        r"cumsum of pairs of tokens is not elementwise\.",
    ),
    "a sort of keys": (
        lambda: mod(lambda s, q, k, h: s + jnp.sort(column(k, s))),
        r"sort may join several tokens\.",
    ),
    "a sort of pairs": (
        lambda: mod(lambda s, q, k, h: jnp.sort(s)),
        r"sort of pairs of tokens is not elementwise\.",
    ),
    "an array of pairs in the text": (
        lambda: mod(lambda s, q, k, h: s + np.ones((1, N, T, S), np.float32)),
        r"an array of pairs is no parameter\. Give it as Aligned\.",
    ),
    "an array of pairs as a whole parameter": (
        lambda: mod(lambda s, q, k, h, *, x: s + x, x=jnp.ones((1, 1, T, S))),
        r"an array \[1, 1, 7, 12\] belongs to no token and no head\.",
    ),
    "an array over keys as a whole parameter": (
        lambda: mod(lambda s, q, k, h, *, x: s + x, x=jnp.ones((1, 1, 1, S))),
        r"an array \[1, 1, 1, 12\] belongs to no token and no head\.",
    ),
    "a queue of tokens": (
        lambda: mod(lambda s, q, k, h: s + jnp.arange(S, dtype=s.dtype).reshape(1, 1, 1, S)),
        r"an array \[1, 1, 1, 12\] belongs to no token and no head\.",
    ),
    "tables, with coordinates": (
        lambda: {"score_mod": scores.T5Bias(jnp.ones((8, N))), **HERE},
        r"T5Bias looks a bias up by distance, which takes positions that are known to count from "
        r"0\. Leave out query_coords and key_coords\.",
    ),
    "tables over a grid": (
        lambda: {
            "score_mod": scores.RelativeBias2D(jnp.ones((9, N)), (2, 2)),
            "query_coords": Coords.grid(2, 2)[jnp.zeros(T, int)],
            "key_coords": Coords.grid(2, 2)[jnp.zeros(S, int)],
        },
        r"(concatenate|gather) of pairs of tokens is not elementwise\.",
    ),
    "selected blocks": (
        lambda: {"mask": masks.Selected(CHOSEN, 4, num_key_blocks=3), **HERE},
        r"gather of pairs of tokens is not elementwise\.",
    ),
    "a reverse rule": (
        lambda: mod(lambda s, q, k, h: cubed(s)),
        r"custom_vjp_call\w* of pairs of tokens is not elementwise\.",
    ),
    "a loop over keys": (
        lambda: mod(
            lambda s, q, k, h: s + jax.lax.fori_loop(0, 3, lambda i, x: 2 * x, column(k, s))
        ),
        r"scan may join several tokens\.",
    ),
    "a while loop": (
        lambda: mod(lambda s, q, k, h: jax.lax.while_loop(lambda _: False, lambda s: s + 1, s)),
        r"while of pairs of tokens is not elementwise\.",
    ),
    "a scan": (
        lambda: mod(lambda s, q, k, h: jax.lax.scan(lambda s, _: (s * 2, None), s, None, 3)[0]),
        r"scan of pairs of tokens is not elementwise\.",
    ),
    "a choice among modifiers": (
        lambda: mod(
            lambda s, q, k, h, *, which: jax.lax.switch(which, [jnp.sin, jnp.cos], s),
            which=jnp.int32(1),
        ),
        r"cond of pairs of tokens is not elementwise\.",
    ),
    "a matrix product": (
        lambda: mod(lambda s, q, k, h: s @ jnp.ones((1, 1, S, S))),
        r"dot_general of pairs of tokens is not elementwise\.",
    ),
    "a turned tile": (
        lambda: mod(lambda s, q, k, h: jnp.flip(s, -1)),
        r"rev of pairs of tokens is not elementwise\.",
    ),
    "random numbers": (
        lambda: mod(lambda s, q, k, h: s + jax.random.uniform(jax.random.key(0), s.shape)),
        r"belongs to no token and no head\.|is no parameter",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_a_tile_cannot_compute_is_declined_with_the_reason(case):
    make, message = DECLINED[case]
    problem = problem_of(**make())
    with pytest.raises(NotStagedError, match=message):
        Pairs(problem)
    q, k = jnp.zeros((B, T, N, D)), jnp.zeros((B, S, 1, D))
    kernel = PallasTPU(interpret=True)
    said = "'pallas_tpu' declines: a tile cannot compute the mask or a score modifier: .*"
    with pytest.raises(NotImplementedError, match=f"{said}({message})"):
        dot_product_attention(q, k, k, **make(), implementation=kernel)
    assert dot_product_attention(q, k, k, **make(), implementation="dense").shape == q.shape


def test_a_loop_over_numbers_of_heads_is_computed_outside():
    def slope(s, q, k, head_ids, *, w):
        power = jax.lax.scan(lambda x, _: (x * w, None), w, None, 3)[0]
        return s * power[head_ids]

    problem = problem_of(score_mod=scores.score_mod(slope, w=jnp.array([1.0, 2.0, 3.0])))
    pairs = Pairs(problem)
    (factor,) = given_of(pairs, problem)
    np.testing.assert_array_equal(factor, np.array([1.0, 16, 81]).reshape(1, N, 1, 1))


def test_loops_of_equal_text_are_not_taken_for_one():
    """They differ in an array that they capture."""
    captured = np.array([2.0, 5.0]), np.array([3.0, 7.0])

    def loop(numbers, start):
        return jax.lax.fori_loop(0, 2, lambda i, x: x + jnp.asarray(numbers, x.dtype)[i], start)

    def twice(s, q, k, head_ids, *, w):
        return s * loop(captured[0], w) + loop(captured[1], w)

    problem = problem_of(score_mod=scores.score_mod(twice, w=jnp.float32(1)))
    pairs = Pairs(problem)
    tile = jnp.ones((T, S))
    numbers = [x.reshape(()) for x in given_of(pairs, problem)]
    np.testing.assert_array_equal(pairs.modified(tile, numbers, masked=False), 8.0 + 11.0)


def test_a_parameter_of_every_letter_is_given_as_what_it_depends_on():
    sizes = {"b": B, "n": N, "t": T, "s": S}
    for axes in ("bn", "bnt", "bns", "bnts"):
        shape = [sizes[letter] for letter in axes]
        factor = draw(*shape).astype(np.float32)
        expand = lambda x, axes=axes: {
            "bn": lambda: x[..., None, None],
            "bnt": lambda: x[..., None],
            "bns": lambda: x[..., None, :],
            "bnts": lambda: x,
        }[axes]()
        by = scores.score_mod(
            lambda s, q, k, h, *, x, expand=expand: s * expand(x.values),
            x=Aligned(jnp.asarray(factor), axes),
        )
        problem = problem_of(score_mod=by)
        pairs = Pairs(problem)
        depends = Depends(("t" in axes) * Depends.QUERY | ("s" in axes) * Depends.KEY)
        assert [x.depends for x in pairs.given] == [depends]
        np.testing.assert_array_equal(given_of(pairs, problem)[0], expand(factor))


def test_the_bias_of_a_sigmoid_is_a_number_of_each_head():
    problem = problem_of(normalizer=Sigmoid(jnp.array([1.0, 2.0, 3.0])))
    pairs = Pairs(problem)
    assert [x.depends for x in pairs.given] == [Depends.HEAD]
