"""Score modifiers against the oracle: values, gradients, layouts, heads, errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import scores
from flax_attn.coords import Aligned, Coords, PerHead, to_record
from tests.oracles import scores as oracle
from tests.tolerances import FINITE_DIFFERENCE, FORWARD, assert_close

BATCH, HEADS, ALL_HEADS = 2, 4, 6
HEAD_IDS = np.array([1, 0, 5, 2])
WINDOW = (3, 2)


def make_bias(leaves):
    return scores.Bias(Aligned(leaves["values"], "bnts"))


def make_distance(axes):
    return lambda leaves: scores.DistanceBias(leaves["weight"], axes)


# What makes the modifier of its leaves, the oracle's rule, the leaves' shapes, the settings.
CASES = {
    "Scale": (lambda x: scores.Scale(x["factor"]), oracle.scale, {"factor": ()}, {}),
    "Scale per head": (lambda x: scores.Scale(**x), oracle.scale, {"factor": (ALL_HEADS,)}, {}),
    "Temperature": (
        lambda x: scores.Temperature(floor_scale=3, **x),
        oracle.temperature,
        {"attn_scale": ()},
        {"floor_scale": 3},
    ),
    "SoftCap": (lambda x: scores.SoftCap(**x), oracle.soft_cap, {"cap": ()}, {}),
    "ALiBi": (lambda x: scores.ALiBi(**x), oracle.alibi, {"slopes": (ALL_HEADS,)}, {}),
    "RelativeBias": (
        lambda x: scores.RelativeBias(**x),
        oracle.relative,
        {"table": (2 * 3 + 1, ALL_HEADS)},
        {},
    ),
    "T5Bias": (
        lambda x: scores.T5Bias(max_distance=12, **x),
        oracle.t5,
        {"table": (12, ALL_HEADS)},
        {"max_distance": 12, "bidirectional": True},
    ),
    "T5Bias one way": (
        lambda x: scores.T5Bias(max_distance=6, bidirectional=False, **x),
        oracle.t5,
        {"table": (6, ALL_HEADS)},
        {"max_distance": 6, "bidirectional": False},
    ),
    "RelativeBias2D": (
        lambda x: scores.RelativeBias2D(window=WINDOW, **x),
        oracle.relative_2d,
        {"table": (5 * 3, ALL_HEADS)},
        {"window": WINDOW},
    ),
    "DistanceBias": (
        make_distance(("x", "y", "row")),
        oracle.distance,
        {"weight": (ALL_HEADS,)},
        {"axes": ("x", "y", "row")},
    ),
    "DistanceBias of one axis": (
        make_distance(["x"]),
        oracle.distance,
        {"weight": ()},
        {"axes": ["x"]},
    ),
    "Forget": (
        lambda x: scores.Forget("sums"),
        oracle.forget,
        {},
        {"feature": "sums"},
    ),
    "Bias": (make_bias, oracle.bias, {"values": (BATCH, 1, 5, 7)}, {}),
}
FEATURES = ("x", "y", "sums")

QUERIES, KEYS = np.arange(5)[None], np.arange(7)[None]
# Positions of the queries [B | 1, T] and of the keys [B | 1, S].
LAYOUTS = {
    "from 0": (QUERIES, KEYS),
    "later": (QUERIES + 100, KEYS + 97),
    "far behind": (QUERIES + 1000, KEYS),
    "far ahead": (QUERIES, KEYS + 1000),
    "another offset in each sequence": (
        QUERIES + np.array([[3], [40]]),
        KEYS + np.array([[1], [39]]),
    ),
    "far in one sequence": (QUERIES, KEYS + np.array([[0], [90]])),
    "permuted": (QUERIES[:, [3, 0, 4, 1, 2]], KEYS[:, [6, 0, 2, 1, 5, 3, 4]]),
    "permuted keys": (QUERIES, KEYS[:, ::-1]),
    "packed": (np.array([[0, 1, 2, 0, 1]]), np.array([[0, 1, 2, 3, 0, 1, 2]])),
    "zigzag": (QUERIES + 9, np.array([[0, 1, 2, 9, 10, 11, 12]])),
}


def leaves_of(name, dtype=np.float64):
    rng = np.random.default_rng(3)
    shapes = CASES[name][2]
    return {x: (rng.normal(size=shape) + 2).astype(dtype) for x, shape in shapes.items()}


def features_of(layout, seed=0):
    """The float features and the scores of a layout."""
    rng = np.random.default_rng(seed)
    sides = []
    for positions in LAYOUTS[layout]:
        shape = (BATCH, positions.shape[1])
        places = {x: rng.normal(size=shape) for x in ("x", "y")}
        sides.append({**places, "sums": -np.cumsum(rng.random((*shape, HEADS)), axis=1)})
    shape = (BATCH, HEADS, *(x.shape[1] for x in LAYOUTS[layout]))
    return sides, 3 * rng.normal(size=shape)


def whole_features(positions):
    return {"positions": positions, "row": positions // 3, "col": positions % 3}


def batched(layout):
    """The positions of a layout as [B, T], so that all layouts share a compilation."""
    return [np.broadcast_to(x, (BATCH, x.shape[1])) for x in LAYOUTS[layout]]


def apply(mod, given, positions, sides, rank=4, head_ids=HEAD_IDS):
    """The modifier on scores [B, N, T, S], or on [B, K, G, t, s] made of them."""
    head_ids = jnp.asarray(head_ids, jnp.int32)
    records = []
    for side, where, floats in zip(("query", "key"), positions, sides, strict=True):
        fields = {x: jnp.asarray(v, jnp.int32) for x, v in whole_features(where).items()}
        fields |= {x: PerHead(v) if v.ndim == 3 else v for x, v in floats.items()}
        ids = head_ids if side == "query" else None
        records.append(to_record(Coords(**fields), side, 1, ids))
    ids = head_ids[None, :, None, None]
    if rank == 5:  # groups of two heads
        grouped = functools.partial(split_heads, heads=given.shape[1])
        mod, *records = jax.tree.map(grouped, (mod, *records), is_leaf=lambda x: x is None)
        out = mod(grouped(given), *records, grouped(ids))
        return out.reshape(given.shape)
    return mod(given, *records, ids)


call = jax.jit(apply, static_argnames="rank")


def split_heads(x, heads):
    """`[B, N | 1, t, s]` -> `[B, N / 2 | 1, 2 | 1, t, s]`; leaves of modifiers stay."""
    if jnp.ndim(x) != 4:
        return x
    groups = (heads // 2, 2) if x.shape[1] == heads else (1, 1)
    return x.reshape(x.shape[0], *groups, *x.shape[2:])


@functools.cache
def compiled(name, rank):
    """Value, and gradients of Σ weights · value, with respect to leaves, features and scores."""

    def run(leaves, sides, given, weights, positions):
        def total(leaves, sides, given):
            out = call(CASES[name][0](leaves), given, positions, sides, rank)
            return jnp.sum(out * weights), out

        grads, out = jax.grad(total, (0, 1, 2), has_aux=True)(leaves, sides, given)
        return out, grads

    return jax.jit(run)


def expected(name, leaves, sides, given, layout):
    _, rule, _, settings = CASES[name]
    query, key = (
        whole_features(where) | floats for where, floats in zip(LAYOUTS[layout], sides, strict=True)
    )
    return oracle.modify(rule, given, query, key, HEAD_IDS, **leaves, **settings)


def differences(function, array, epsilon=1e-5):
    """Central differences of a function of an array that is changed in place."""
    out = np.zeros(np.shape(array))
    for at in np.ndindex(out.shape):
        old = array[at]
        array[at] = old + epsilon
        above = function()
        array[at] = old - epsilon
        out[at] = (above - function()) / (2 * epsilon)
        array[at] = old
    return out


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("name", list(CASES))
def test_values_are_those_of_the_oracle_wherever_tokens_are(name, rank, x64):
    leaves = leaves_of(name)
    for layout in LAYOUTS:
        sides, given = features_of(layout)
        if rank == 4:
            out, _ = compiled(name, 4)(leaves, sides, given, np.ones_like(given), batched(layout))
        else:
            out = call(CASES[name][0](leaves), given, batched(layout), sides, rank)
        want = expected(name, leaves, sides, given, layout)
        chex.assert_type(out, jnp.float64)
        assert_close(out, want, FORWARD["float64"], f"{name}, {layout}")
        assert not np.allclose(out, given)  # it does something


@pytest.mark.parametrize("name", list(CASES))
def test_gradients_are_those_of_the_oracle(name, x64):
    positional = {"RelativeBias", "T5Bias"}  # each way to look up a distance has its own gradient
    everywhere = ["from 0", "far behind", "another offset in each sequence", "permuted", "packed"]
    layouts = everywhere if name in positional else ["from 0", "permuted"]
    for layout in layouts:
        leaves = {x: np.array(v) for x, v in leaves_of(name).items()}
        sides, given = features_of(layout)
        weights = np.random.default_rng(7).normal(size=given.shape)
        args = (leaves, sides, given, weights, batched(layout))
        # Wait: what runs in the background may read the arrays that are about to be changed.
        _, (to_leaves, to_sides, to_given) = jax.block_until_ready(compiled(name, 4)(*args))
        if name in ("RelativeBias", "DistanceBias", "Forget", "Bias"):  # one of each kind
            _, others = jax.block_until_ready(compiled(name, 5)(*args))
            same = functools.partial(assert_close, relative=FORWARD["float64"])
            jax.tree.map(same, others, (to_leaves, to_sides, to_given))

        def total(leaves=leaves, sides=sides, given=given, layout=layout, weights=weights):
            return np.sum(expected(name, leaves, sides, given, layout) * weights)

        for x, values in leaves.items():
            want = differences(total, values)
            assert_close(to_leaves[x], want, 10 * FINITE_DIFFERENCE, f"{name}.{x}, {layout}")
            assert np.any(want)
        used = {"DistanceBias": ["x", "y"], "DistanceBias of one axis": ["x"], "Forget": ["sums"]}
        for mine, want in zip(to_sides, sides, strict=True):
            for x in FEATURES:
                if x in used.get(name, []):
                    want_x = differences(total, want[x])
                    assert_close(mine[x], want_x, 10 * FINITE_DIFFERENCE, f"{name}, {x}, {layout}")
                else:
                    chex.assert_trees_all_equal(mine[x], 0)
        # Each score depends on itself only: all can move at once.
        above, below = (expected(name, leaves, sides, given + x, layout) for x in (1e-5, -1e-5))
        want = weights * (above - below) / 2e-5
        assert_close(to_given, want, 10 * FINITE_DIFFERENCE, f"{name}, scores, {layout}")


@pytest.mark.parametrize("name", list(CASES))
def test_bfloat16_leaves_and_features_leave_float32_scores_float32(name):
    leaves = {x: v.astype(jnp.bfloat16) for x, v in leaves_of(name).items()}
    sides, given = features_of("from 0")
    sides = jax.tree.map(lambda x: x.astype(jnp.bfloat16), sides)
    given = given.astype(np.float32)
    make, args = CASES[name][0], (given, batched("from 0"), sides)
    out = call(make(leaves), *args)
    chex.assert_type(out, jnp.float32)
    wide = jax.tree.map(lambda x: np.asarray(x).astype(np.float64), (leaves, sides))
    assert_close(out, expected(name, *wide, given, "from 0"), FORWARD["float32"], name)
    grads = jax.eval_shape(jax.grad(lambda x: jnp.sum(call(make(x), *args))), leaves)
    chex.assert_trees_all_equal_dtypes(grads, leaves)


@pytest.mark.parametrize("name", ["Scale per head", "ALiBi", "T5Bias", "RelativeBias2D"])
def test_parts_of_the_heads_are_parts_of_the_whole(name):
    leaves = leaves_of(name, np.float32)
    mod = CASES[name][0](leaves)
    sides, _ = features_of("from 0")
    sides = [
        {x: (v[:, :, :1] if v.ndim == 3 else v).astype(np.float32) for x, v in side.items()}
        for side in sides
    ]
    ids = np.arange(ALL_HEADS)
    given = np.random.default_rng(0).normal(size=(BATCH, ALL_HEADS, 5, 7)).astype(np.float32)
    whole = call(mod, given, LAYOUTS["from 0"], sides, head_ids=ids)
    for part in (slice(0, 2), slice(2, 6)):
        mine = call(mod, given[:, part], LAYOUTS["from 0"], sides, head_ids=ids[part])
        chex.assert_trees_all_equal(mine, whole[:, part])


@pytest.mark.parametrize("name", ["RelativeBias", "T5Bias"])
def test_moved_tokens_keep_their_biases_exactly(name):
    mod = CASES[name][0](leaves_of(name, np.float32))
    rng = np.random.default_rng(1)
    for offset in (0, 4, 90, -90):
        rows, cols = np.arange(33)[None] + offset, np.arange(50)[None]
        order = rng.permutation(33), rng.permutation(50)
        zeros = jnp.zeros((1, HEADS, 33, 50))
        plain = call(mod, zeros, (rows, cols), ({}, {}))
        moved = call(mod, zeros, (rows[:, order[0]], cols[:, order[1]]), ({}, {}))
        chex.assert_trees_all_equal(moved, plain[:, :, order[0]][..., order[1]])
        assert np.ptp(plain) > 0 or abs(offset) == 90


@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 17), (8, 1), (9, 17), (31, 6), (0, 3), (3, 0)])
def test_tiles_of_any_size_count_their_distances(t, s):
    table = leaves_of("RelativeBias", np.float32)["table"]
    rows, cols = np.arange(t)[None] + 5, np.arange(s)[None] + 3
    zeros = np.zeros((1, HEADS, t, s), np.float32)
    out = call(scores.RelativeBias(table), zeros, (rows, cols), ({}, {}))
    sides = {"positions": rows}, {"positions": cols}
    want = oracle.modify(oracle.relative, zeros, *sides, HEAD_IDS, table=table)
    chex.assert_trees_all_equal(out, want.astype(np.float32))


def test_contiguous_tiles_look_up_distances_and_not_scores():
    t, s = 64, 96
    mod = scores.T5Bias(jnp.ones((32, ALL_HEADS)))
    positions = np.arange(t)[None], np.arange(s)[None]

    def pulled_back(table, given):
        out, pull = jax.vjp(
            lambda x, y: call(scores.T5Bias(x), y, positions, ({}, {})), table, given
        )
        return pull(out)

    jaxpr = jax.make_jaxpr(pulled_back)(mod.table, jnp.zeros((1, HEADS, t, s)))
    choices = [eqn for eqn in every_equation(jaxpr.jaxpr) if eqn.primitive.name == "cond"]
    assert len(choices) == 2  # forwards and backwards
    largest = [
        max(
            eqn.invars[-1].aval.size
            if "scatter" in eqn.primitive.name
            else eqn.outvars[0].aval.size
            for eqn in every_equation(choice.params["branches"][1].jaxpr)
            if eqn.primitive.name in ("gather", "scatter-add", "scatter_add")
        )
        for choice in choices
    ]
    assert max(largest) <= HEADS * 4 * (t + s)
    # Nothing of the size of a tile is kept for the gradients but the scores.
    for choice in choices:
        tiles = [x for x in choice.outvars if x.aval.size >= t * s]
        assert len(tiles) <= 1


def every_equation(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from every_equation(inner)


@pytest.mark.parametrize(
    ("num_buckets", "max_distance", "bidirectional"),
    [
        (32, 128, True),
        (32, 128, False),
        (32, 100, True),
        (14, 77, True),
        (320, 800, True),
        (5, 9, False),
    ],
)
def test_buckets_are_those_of_t5(num_buckets, max_distance, bidirectional):
    reach = 10_000 if num_buckets == 32 else 1_000
    distances = np.arange(-reach, reach + 1)
    settings = num_buckets, max_distance, bidirectional
    want = np.array([oracle.t5_bucket(int(x), *settings) for x in distances])
    table = jnp.arange(num_buckets, dtype=jnp.float32)[:, None]
    mod = scores.T5Bias(table, max_distance, bidirectional)
    zeros = jnp.zeros((1, 1, 1, distances.size))
    for keys in (distances, distances[::-1]):  # contiguous, and not
        out = call(mod, zeros, (np.zeros((1, 1), int), keys[None]), ({}, {}), head_ids=[0])
        chex.assert_trees_all_equal(out[0, 0, 0], want if keys is distances else want[::-1])
    unused = {num_buckets // 2} if bidirectional else set()
    assert set(want.tolist()) == set(range(num_buckets)) - unused


def test_buckets_of_the_t5_checkpoints_by_hand():
    """8 single distances, then 16 · 2^(k/2) and so on up to 128 in 8 steps, both ways."""
    table = jnp.arange(32, dtype=jnp.float32)[:, None]
    keys = np.array([[0, -7, -8, -11, -12, -16, -23, -32, -64, -90, -91, -128, -999, 1, 8, 500]])
    out = call(
        scores.T5Bias(table),
        jnp.zeros((1, 1, 1, 16)),
        (np.zeros((1, 1), int), keys),
        ({}, {}),
        head_ids=[0],
    )
    assert out[0, 0, 0].tolist() == [0, 7, 8, 8, 9, 10, 11, 12, 14, 14, 15, 15, 15, 17, 24, 31]


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 20, 71])
def test_alibi_slopes_are_those_of_the_paper(heads):
    slopes = scores.ALiBi.for_heads(heads).slopes
    chex.assert_trees_all_close(slopes, np.array(oracle.alibi_slopes(heads)))
    chex.assert_shape(slopes, (heads,))
    chex.assert_type(slopes, jnp.float32)


def test_alibi_slopes_by_hand():
    slopes = np.asarray(scores.ALiBi.for_heads(6).slopes)
    chex.assert_trees_all_equal(
        slopes, np.array([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    )


def test_swin_index_is_that_of_its_code():
    """The index as Swin computes it: query minus key, shifted, times the width."""
    height, width = 3, 4
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).reshape(2, -1)
    relative = (grid[:, :, None] - grid[:, None, :]).transpose(1, 2, 0)
    relative = relative + np.array([height - 1, width - 1])
    index = relative[..., 0] * (2 * width - 1) + relative[..., 1]
    table = np.random.default_rng(0).normal(size=(5 * 7, 3)).astype(np.float32)
    coords = Coords.grid(height, width)
    q, k = to_record(coords, "query", 1), to_record(coords, "key", 1)
    ids = jnp.arange(3)[None, :, None, None]
    out = scores.RelativeBias2D(table, window=(height, width))(jnp.zeros((1, 3, 12, 12)), q, k, ids)
    chex.assert_trees_all_equal(out[0], table[index].transpose(2, 0, 1))


def test_temperature_grows_at_the_steps_of_llama_4():
    positions = np.array([[0, 8190, 8191, 16382, 16383, -5]])
    mod = scores.Temperature()
    out = call(
        mod, jnp.ones((1, 1, 6, 1)), (positions, np.zeros((1, 1), int)), ({}, {}), head_ids=[0]
    )
    want = 1 + 0.1 * np.log([1, 1, 2, 2, 3, 1])
    chex.assert_trees_all_close(out[0, 0, :, 0], want)


@pytest.mark.parametrize("axes", [("x",), ("x", "y")])
def test_distance_has_finite_derivatives_of_any_order_where_it_is_zero(axes, x64):
    def total(x):
        side = {"x": x, "y": 2 * x}
        mod = scores.DistanceBias(jnp.ones(1), axes)
        out = call(
            mod, jnp.zeros((1, 1, 3, 3)), (np.zeros((1, 3), int),) * 2, (side, side), head_ids=[0]
        )
        return jnp.sum(out[0, 0] * jnp.asarray([[1.0, 2.0, 3.0]]))

    x = jnp.array([[1.0, 1.0, 4.0]])  # zero with itself, and with a neighbour
    slope, curvature = jax.jit(lambda x: (jax.grad(total)(x), jax.hessian(total)(x)))(x)
    length = 1 if len(axes) == 1 else np.sqrt(5)
    chex.assert_trees_all_close(
        slope, np.array([[4 * length, 5 * length, -9 * length]]), rtol=1e-12
    )
    chex.assert_trees_all_close(curvature, 0, rtol=1e-7, atol=1e-12)


def test_modifiers_apply_from_left_to_right():
    given = jnp.full((1, 1, 1, 1), 3.0)
    where = (np.array([[5]]), np.array([[1]]))
    alibi, cap = scores.ALiBi(jnp.array([0.5])), scores.SoftCap(2.0)
    first = call(alibi >> cap, given, where, ({}, {}), head_ids=[0])
    second = call(cap >> alibi, given, where, ({}, {}), head_ids=[0])
    chex.assert_trees_all_close(first, 2 * np.tanh((3 - 0.5 * 4) / 2))
    chex.assert_trees_all_close(second, 2 * np.tanh(3 / 2) - 0.5 * 4)


@pytest.mark.parametrize("name", list(CASES))
def test_modifiers_survive_jit_vmap_and_scan(name):
    leaves = leaves_of(name, np.float32)
    sides, given = features_of("from 0")
    sides, given = jax.tree.map(lambda x: x.astype(np.float32), (sides, given))
    where = LAYOUTS["from 0"]

    def run(mod):
        return call(mod, given, where, sides)

    make = CASES[name][0]
    layers = [make({x: v + np.float32(i) for x, v in leaves.items()}) for i in range(2)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *layers)

    @jax.jit
    def run_all(layers, stacked):
        return (
            jnp.stack([run(mod) for mod in layers]),
            jax.vmap(run, axis_size=2)(stacked),
            jax.lax.scan(lambda c, mod: (c, run(mod)), None, stacked, length=2)[1],
        )

    want, mapped, scanned = run_all(layers, stacked)
    chex.assert_trees_all_close(want, mapped, scanned, rtol=2e-6, atol=1e-6)
    if leaves:
        assert not np.allclose(want[0], want[1])


def test_batched_positions_choose_their_own_way():
    mod = CASES["T5Bias"][0](leaves_of("T5Bias", np.float32))
    keys = np.stack([KEYS, KEYS[:, ::-1], KEYS + 1000])
    zeros = jnp.zeros((1, HEADS, 5, 7))

    def run(where):
        return call(mod, zeros, (QUERIES, where), ({}, {}))

    out = jax.vmap(run)(jnp.asarray(keys))
    chex.assert_trees_all_equal(out, np.stack([run(where) for where in keys]))


def test_forward_reverse_and_second_derivatives_of_tables_agree(x64):
    table = leaves_of("T5Bias")["table"]
    direction = np.random.default_rng(2).normal(size=table.shape)

    @jax.jit
    def derivatives(given, positions):
        def total(table):
            out = call(scores.T5Bias(table, 12), given, positions, ({}, {}))
            return jnp.sum(jnp.sin(out)), out

        def first(table):
            return jnp.vdot(jax.grad(total, has_aux=True)(table)[0], direction)

        forward, along = jax.jvp(total, (table,), (direction,))
        return (
            forward[1],
            along,
            first(table),
            jax.jvp(first, (table,), (direction,))[1],
            jax.grad(first)(table),
        )

    for layout in ("from 0", "permuted", "far behind"):
        _, given = features_of(layout)
        out, (slope, moved), reverse, second, gradient = derivatives(given, batched(layout))
        want = np.sum(np.cos(out) * moved)
        chex.assert_trees_all_close(np.array([slope, reverse]), want, rtol=1e-12)
        want = -np.sum(np.sin(out) * moved**2)
        chex.assert_trees_all_close(
            np.array([second, np.vdot(gradient, direction)]), want, rtol=1e-12
        )


ERRORS = {
    "shape of a factor": (lambda: scores.Scale(jnp.ones((2, 2))), ValueError, r"got \[2, 2\]"),
    "integer factor": (lambda: scores.Scale(jnp.ones(2, int)), TypeError, "floating point.*int32"),
    "kind of factor": (lambda: scores.Scale("big"), TypeError, "number or one per head.*got str"),
    "step": (lambda: scores.Temperature(0), ValueError, "floor_scale must be at least 1, got 0"),
    "half step": (lambda: scores.Temperature(0.5), TypeError, "one whole number, got 0.5"),
    "cap of zero": (lambda: scores.SoftCap(0), ValueError, "cap must be above 0, got 0.0"),
    "cap per head": (lambda: scores.SoftCap(jnp.ones(2)), ValueError, r"a number, got \[2\]"),
    "slopes": (lambda: scores.ALiBi(jnp.ones((1, 8))), ValueError, r"\[N\].*got \[1, 8\]"),
    "no heads": (lambda: scores.ALiBi.for_heads(0), ValueError, "at least 1, got 0"),
    "even table": (
        lambda: scores.RelativeBias(jnp.ones((4, 2))),
        ValueError,
        "even number of rows",
    ),
    "flat table": (lambda: scores.RelativeBias(jnp.ones(5)), ValueError, r"got \[5\]"),
    "number for a table": (lambda: scores.RelativeBias(1.0), ValueError, "got the number 1.0"),
    "buckets": (lambda: scores.T5Bias(jnp.ones((7, 2))), ValueError, "even number, got"),
    "few buckets": (lambda: scores.T5Bias(jnp.ones((1, 2)), 8, False), ValueError, "at least 2"),
    "max_distance": (lambda: scores.T5Bias(jnp.ones((32, 2)), 8), ValueError, "must be above 8, "),
    "window": (lambda: scores.RelativeBias2D(jnp.ones((9, 2)), (2, 3)), ValueError, r"\[15, N\]"),
    "three axes": (
        lambda: scores.RelativeBias2D(jnp.ones((9, 2)), (2, 2), ("a", "b", "c")),
        ValueError,
        "two names, for rows",
    ),
    "one string": (lambda: scores.DistanceBias(1.0, "time"), ValueError, "names of features"),
    "sums": (lambda: scores.Forget(jnp.ones(3)), TypeError, "name of a feature"),
    "boolean bias": (lambda: scores.Bias(jnp.ones((2, 2), bool)), TypeError, r"masks\.Dense"),
    "integer bias": (lambda: scores.Bias(jnp.ones((2, 2), int)), TypeError, "got int32"),
    "list as bias": (lambda: scores.Bias([[1.0]]), TypeError, "got list"),
    "bias of one axis": (lambda: scores.Bias(jnp.ones(3)), ValueError, r"got \[3\]"),
}


@pytest.mark.parametrize("case", list(ERRORS))
def test_errors_say_what_is_wrong(case):
    make, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        make()


def test_a_head_without_a_number_is_an_error_or_not_a_number():
    mod = scores.ALiBi.for_heads(2)
    args = jnp.zeros((1, 1, 5, 7)), LAYOUTS["from 0"], ({}, {})
    with pytest.raises(ValueError, match=r"at least 4 as head ids go up to 3, got 2"):
        apply(mod, *args, head_ids=[3])
    out = call(mod, *args, head_ids=jnp.array([3]))
    assert np.isnan(out).all()


def test_missing_features_name_the_fix():
    args = jnp.zeros((1, 1, 5, 7)), LAYOUTS["from 0"], ({}, {})
    with pytest.raises(ValueError, match=r"no 'log_forget'.*with_features\(log_forget="):
        call(scores.Forget(), *args, head_ids=[0])
    floats = [{"row": jnp.zeros((1, n))} for n in (5, 7)]
    with pytest.raises(TypeError, match="'row' must be integers, got float32"):
        call(scores.RelativeBias2D(jnp.ones((9, 1)), (2, 2)), *args[:2], floats, head_ids=[0])


def test_reprs_are_short():
    table = jnp.zeros((32, 8))
    mod = scores.ALiBi.for_heads(8) >> scores.SoftCap(30)
    assert repr(mod) == "ALiBi(slopes=float32[8]) >> SoftCap(cap=30.0)"
    assert repr(scores.T5Bias(table)) == (
        "T5Bias(table=float32[32, 8], max_distance=128, bidirectional=True)"
    )
    assert repr(scores.Bias(jnp.zeros((3, 4)))) == "Bias(values=float32[1, 3, 4])"
    assert (
        repr(scores.Scale(2) >> scores.Forget())
        == "Scale(factor=2.0) >> Forget(feature='log_forget')"
    )


def test_trees_of_modifiers_may_hold_anything():
    for name in CASES:
        mod = CASES[name][0](leaves_of(name, np.float32))
        assert isinstance(repr(jax.tree.map(lambda x: None, mod)), str)
        shapes = jax.eval_shape(lambda m: m, mod)
        chex.assert_trees_all_equal_structs(shapes, mod)


def test_settings_survive_traced_numbers():
    def run(cap, steps):
        mod = scores.SoftCap(cap) >> scores.Temperature(steps, cap)
        return call(mod, jnp.ones((1, 1, 5, 7)), LAYOUTS["from 0"], ({}, {}), head_ids=[0])

    chex.assert_trees_all_close(jax.jit(run)(2.0, 3), run(2.0, 3))
