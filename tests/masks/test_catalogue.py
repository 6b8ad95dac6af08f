"""Each mask of the catalogue against plain Python, and what it refuses."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import masks
from flax_attn.coords import Coords, to_record
from tests.oracles import masks as oracle

B, N, T, S = 2, 3, 7, 12


def evaluate(mask, query, key, num_heads=N, batch_ndim=1):
    """`[B, N, T, S]` of booleans."""
    q = to_record(query, "query", batch_ndim, jnp.arange(num_heads, dtype=jnp.int32))
    k = to_record(key, "key", batch_ndim)
    seen = mask(q, k)
    chex.assert_type(seen, bool)
    return np.asarray(seen)


def fields(coords):
    return {
        name: np.broadcast_to(np.asarray(x), (B, len(coords)))
        for name, x in coords.fields().items()
    }


@functools.cache
def random_coords(layout):
    """Queries and keys with every feature of the catalogue, as attention meets them."""
    rng = np.random.default_rng(7)
    positions = {
        "self": lambda: (np.arange(T), np.arange(S)),
        "decode": lambda: (np.array([[9], [4]]) + np.arange(T), np.tile(np.arange(S), (B, 1))),
        "permuted": lambda: (
            np.stack([rng.permutation(S)[:T] for _ in range(B)]),
            np.stack([rng.permutation(S) for _ in range(B)]),
        ),
    }[layout]()
    tree = Coords.tree(PARENTS)
    sides = []
    for p in positions:
        length = p.shape[-1]
        node = rng.integers(0, len(PARENTS), (B, length))
        lower = rng.integers(0, S, (B, length))
        sides.append(
            Coords(
                jnp.asarray(p, jnp.int32),
                segment_ids=jnp.asarray(rng.integers(0, 3, (B, length)), jnp.int32),
                valid=jnp.asarray(rng.random((B, length)) < 0.7),
                is_global=jnp.asarray(rng.random((B, length)) < 0.2),
                prefix=jnp.broadcast_to(jnp.array([[3], [0]], jnp.int32), (B, length)),
                node=jnp.asarray(node, jnp.int32),
                enter=tree.features["enter"][node],
                leave=tree.features["leave"][node],
                image=jnp.asarray(rng.integers(-1, 2, (B, length)), jnp.int32),
                lower=jnp.asarray(lower, jnp.int32),
                upper=jnp.asarray(lower + rng.integers(0, 6, (B, length)), jnp.int32),
                b=jnp.broadcast_to(jnp.arange(B, dtype=jnp.int32)[:, None], (B, length)),
            )
        )
    return sides


PARENTS = [-1, 0, 0, 1, 1, -1, 5, 4]
LEFT, RIGHT = np.array([0, 2, 5]), np.array([1, 0, 3])
BLOCKS = np.random.default_rng(0).integers(-1, 4, (B, N, 5, 2)).astype(np.int32)
CATALOGUE = {
    "Full": (masks.Full(), oracle.full),
    "Empty": (masks.Empty(), oracle.empty),
    "Causal": (masks.Causal(), oracle.causal),
    "Window(2)": (masks.Window(2), oracle.window(2, 0)),
    "Window(1, 3)": (masks.Window(1, 3), oracle.window(1, 3)),
    "Window(None, 1)": (masks.Window(None, 1), oracle.window(None, 1)),
    "Window(1, None)": (masks.Window(1, None), oracle.window(1, None)),
    "Window(None, None)": (masks.Window(None, None), oracle.full),
    "the strict past": (masks.Window(None, -1), oracle.window(None, -1)),
    "a window per head": (masks.Window(jnp.array(LEFT), RIGHT), oracle.window(LEFT, RIGHT)),
    "last_n per head": (masks.Window.last_n(LEFT + 1), oracle.window(LEFT, 0)),
    "Dilated(5, 2)": (masks.Dilated(5, 2), oracle.dilated(5, 2)),
    "Dilated(6, 3)": (masks.Dilated(np.int64(6), jnp.int32(3)), oracle.dilated(6, 3)),
    "Chunked(4)": (masks.Chunked(4), oracle.chunked(4)),
    "Prefix(4)": (masks.Prefix(4), oracle.prefix(4)),
    "Prefix()": (masks.Prefix(), oracle.prefix()),
    "Strided(3)": (masks.Strided(3), oracle.strided(3)),
    "Strided(4, fixed, 2)": (masks.Strided(4, fixed=True, summary=2), oracle.fixed(4, 2)),
    "SameSegment": (masks.SameSegment(), oracle.same_segment),
    "Padding": (masks.Padding(), oracle.padding),
    "GlobalTokens": (masks.GlobalTokens(), oracle.global_tokens),
    "Tree": (masks.Tree(), oracle.tree(PARENTS)),
    "Overlay": (masks.Overlay(), oracle.overlay),
    "Interval": (masks.Interval(), oracle.interval),
    "Selected": (
        masks.Selected(jnp.array(BLOCKS), 3, query_block_size=2, num_key_blocks=4),
        oracle.selected(BLOCKS, 3, 2),
    ),
}


def test_every_mask_is_in_the_catalogue_or_has_a_test_of_its_own():
    classes = {name for name in masks.__all__ if inspect.isclass(getattr(masks, name))}
    tested = {type(mask).__name__ for mask, _ in CATALOGUE.values()}
    assert classes - {"Mask", "Plan"} == tested | {"Dense", "Neighborhood"}


@functools.cache
def expected(name, layout):
    query, key = random_coords(layout)
    return oracle.evaluate(CATALOGUE[name][1], fields(query), fields(key), N)


def evaluate_traced(mask, query, key):
    q = to_record(query, "query", 1, jnp.arange(N, dtype=jnp.int32))
    return mask(q, to_record(key, "key", 1))


@jax.jit
def evaluate_all(catalogue, query, key):
    """Every mask at once: one compilation."""
    return {name: evaluate_traced(mask, query, key) for name, mask in catalogue.items()}


MASKS = {name: mask for name, (mask, _) in CATALOGUE.items()}


@pytest.mark.parametrize("layout", ["self", "decode", "permuted"])
def test_a_mask_is_its_predicate(layout):
    for name, seen in evaluate_all(MASKS, *random_coords(layout)).items():
        chex.assert_type(seen, bool)
        actual = np.broadcast_to(seen, (B, N, T, S))
        np.testing.assert_array_equal(actual, expected(name, layout), err_msg=name)


def test_a_mask_is_the_same_in_64_bits(x64):
    for name, seen in evaluate_all(MASKS, *random_coords("permuted")).items():
        actual = np.broadcast_to(seen, (B, N, T, S))
        np.testing.assert_array_equal(actual, expected(name, "permuted"), err_msg=name)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_mask_needs_no_jit(name):
    seen = evaluate(MASKS[name], *random_coords("permuted"))
    chex.assert_trees_all_equal(np.broadcast_to(seen, (B, N, T, S)), expected(name, "permuted"))


@pytest.mark.parametrize("name", ["Causal", "a window per head", "Prefix()", "Selected"])
def test_a_tile_may_have_its_heads_in_groups(name):
    mask, _ = CATALOGUE[name]
    query, key = random_coords("permuted")
    flat = evaluate(mask, query, key)

    def split(x):
        """[B, N, ...] -> [B, 1, N, ...], for one key head with N query heads."""
        return x[:, None]

    q = to_record(query, "query", 1, jnp.arange(N, dtype=jnp.int32))
    q, k = jax.tree.map(split, (q, to_record(key, "key", 1)))
    if name == "Selected":
        mask = jax.tree.map(split, mask)
    chex.assert_trees_all_equal(mask(q, k), flat[:, None])


def test_empty_and_full_blocks_are_so():
    query, key = random_coords("decode")
    heads = jnp.arange(N, dtype=jnp.int32)

    @jax.jit
    def plan_all(catalogue, query, key):
        make = functools.partial(masks.make_plan, block=(3, 4), head_ids=heads)
        return {name: make(mask, query, key).kinds for name, mask in catalogue.items()}

    sure = 0
    valid = np.asarray(query.valid)[:, None, :, None] & np.asarray(key.valid)[:, None, None, :]
    for name, kinds in plan_all(MASKS, query, key).items():
        truth = kinds_of(expected(name, "decode") & valid, (3, 4))
        kinds = np.broadcast_to(kinds, truth.shape)
        np.testing.assert_array_equal(kinds[kinds != 1], truth[kinds != 1], err_msg=name)
        sure += (kinds != 1).sum()
    assert sure > 200  # of 25 · 54


def kinds_of(seen, block):
    """The map of blocks `[B, N, nq, nk]` of `[B, N, T, S]`: 0 empty, 1 partial, 2 full."""
    rows, columns = (range(0, n, size) for n, size in zip(seen.shape[-2:], block, strict=True))
    parts = [[seen[..., i : i + block[0], j : j + block[1]] for j in columns] for i in rows]
    flat = [[x.reshape(*x.shape[:2], -1) for x in row] for row in parts]
    kinds = [[x.any(axis=-1).astype(int) + x.all(axis=-1) for x in row] for row in flat]
    return np.stack([np.stack(row, axis=-1) for row in kinds], axis=-2)


def map_of_blocks(mask, query, key, block):
    """The plan, and what it should be, both `[B, N, nq, nk]`."""
    heads = jnp.arange(N, dtype=jnp.int32)
    seen = np.broadcast_to(evaluate(mask, query, key), (B, N, len(query), len(key)))
    kinds = masks.make_plan(mask, query, key, block, head_ids=heads).kinds
    truth = kinds_of(seen, block)
    return np.broadcast_to(kinds, truth.shape), truth


@pytest.mark.parametrize("block", [(4, 6), (1, 1)])
def test_the_plan_of_selected_blocks_is_exact_where_their_borders_meet(block):
    mask = masks.Selected(jnp.array(BLOCKS), 3, query_block_size=2, num_key_blocks=4)
    coords = Coords.arange(10), Coords.arange(12)
    kinds, truth = map_of_blocks(mask, *coords, block)
    chex.assert_trees_all_equal(kinds, truth)
    beyond = Coords.arange(16, offset=-2), Coords.arange(20, offset=-3)
    kinds, truth = map_of_blocks(mask, *beyond, (2, 3))
    chex.assert_trees_all_equal(kinds, truth)
    assert (truth[:, :, 0] == 0).all()


def test_the_plan_of_a_dense_mask_is_exact():
    array = np.random.default_rng(0).random((B, N, T, S)) < 0.9
    array[:, :, :3, :4] = True
    array[:, :, 3:6, 8:] = False
    mask = masks.Dense(jnp.asarray(array))
    coords = Coords(jnp.broadcast_to(jnp.arange(T), (B, T))), Coords.arange(S)
    kinds, truth = map_of_blocks(mask, *coords, (3, 4))
    chex.assert_trees_all_equal(kinds, truth)
    assert set(np.unique(kinds).tolist()) == {0, 1, 2}


def test_a_slice_of_heads_keeps_its_windows():
    mask = masks.Window(jnp.array([1, 2, 3, 4]))
    coords = Coords.arange(8)
    whole = evaluate(mask, coords, coords, num_heads=4, batch_ndim=0)
    q = to_record(coords, "query", 0, jnp.array([3, 1]))
    chex.assert_trees_all_equal(mask(q, to_record(coords, "key", 0)), whole[np.array([3, 1])])
    assert whole[:, 7].sum(axis=-1).tolist() == [2, 3, 4, 5]


def test_attention_sinks_are_a_window_beside_global_tokens():
    coords = Coords.arange(10)
    coords = coords.with_features(is_global=coords.positions < 2)
    mask = masks.Causal() & (masks.Window(3) | masks.GlobalTokens())
    seen = evaluate(mask, coords, coords, batch_ndim=0)[0]
    for i in range(10):
        keys = [j for j in range(i + 1) if j < 2 or i - j <= 3]
        assert np.flatnonzero(seen[i]).tolist() == keys


def test_committed_text_is_an_ancestor_of_every_draft():
    drafts = Coords.tree([-1, 0, 0, 1])
    committed = {"enter": jnp.zeros(3, jnp.int32), "leave": jnp.full(3, 4, jnp.int32)}
    features = {
        name: jnp.concatenate([values, drafts.features[name]]) for name, values in committed.items()
    }
    key = Coords(jnp.concatenate([jnp.arange(3), drafts.positions + 3]), **features)
    seen = evaluate(masks.Tree() & masks.Causal(), key, key, batch_ndim=0)[0].astype(int)
    assert seen.tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 1, 0, 1],
    ]


GRIDS = [
    # shape, kernel_size, stride, dilation, is_causal
    ((8, 4), 3, 1, 1, False),
    ((5, 9), 4, 1, 1, False),
    ((4, 4), 4, 1, 1, False),
    ((9, 7), (4, 3), (3, 2), 1, False),
    ((7, 11), (3, 2), 1, (2, 4), False),
    ((10, 9), (3, 4), (2, 4), (3, 2), False),
    ((6, 8), (3, 4), 1, 1, (True, False)),
    ((9, 7), (4, 3), (3, 2), (2, 1), (True, True)),
    ((13,), 5, 4, 2, False),
    ((13,), 4, 4, 3, True),
    ((3, 4, 5), (2, 3, 4), (1, 2, 4), 1, (True, False, False)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_neighborhood_is_nattens(grid):
    shape, *settings = grid
    per_axis = [x if isinstance(x, tuple) else (x,) * len(shape) for x in settings]
    pixels = list(np.ndindex(shape))
    truth = np.zeros((len(pixels), len(pixels)), bool)
    for t, pixel in enumerate(pixels):
        sets = [
            oracle.neighbors(i, size, *options)
            for i, size, *options in zip(pixel, shape, *per_axis, strict=True)
        ]
        for s, other in enumerate(pixels):
            truth[t, s] = all(j in keys for j, keys in zip(other, sets, strict=True))
    axes = ("frame", "row", "col")[-len(shape) :] if len(shape) > 1 else ("positions",)
    coords = Coords.arange(len(pixels)).with_features(
        **{
            name: np.array([pixel[a] for pixel in pixels])
            for a, name in enumerate(axes)
            if name != "positions"
        }
    )
    mask = masks.Neighborhood(shape, *settings, axes=axes)
    q, k = to_record(coords, "query", 0), to_record(coords, "key", 0)
    seen = np.asarray(jax.jit(lambda q, k: mask(q, k))(q, k))[0]
    chex.assert_trees_all_equal(seen, truth)
    if not any(per_axis[3]):
        assert set(seen.sum(axis=-1).tolist()) == {int(np.prod(per_axis[0]))}


def test_a_neighborhood_does_not_clip_at_the_border():
    coords = Coords.grid(8, 4)
    seen = evaluate(masks.Neighborhood((8, 4), 3), coords, coords, batch_ndim=0)[0]
    assert (seen.sum(axis=-1) == 9).all()  # attention-gym's has 6 to 9
    assert np.flatnonzero(seen[0]).tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    even = evaluate(masks.Neighborhood((8, 4), 4), coords, coords, batch_ndim=0)[0]
    assert (even.sum(axis=-1) == 16).all()  # attention-gym's has 25
    assert np.flatnonzero(even[4 * 4]).tolist() == list(range(8, 24))  # rows 2 to 5 of row 4


@pytest.mark.parametrize("shape", [(T, S), (N, T, S), (B, N, T, S), (B, 1, 1, S), (1, N, T, 1)])
def test_a_dense_mask_is_its_array(shape):
    array = np.random.default_rng(0).random(shape) < 0.5
    coords = Coords.arange(T), Coords.arange(S)
    mask = masks.Dense(jnp.asarray(array))
    seen = evaluate(mask, *coords, batch_ndim=max(len(shape), 3) - 3)
    np.testing.assert_array_equal(*np.broadcast_arrays(seen, array))
    assert mask.array.axes == "bnts"


def test_selected_blocks_may_be_traced_and_default_to_as_many_as_the_queries_cover():
    blocks = jnp.array([[0, -1], [1, 0], [2, 0]])
    coords = Coords.arange(6)
    q = to_record(coords, "query", 0, jnp.arange(1))
    k = to_record(coords, "key", 0)
    seen = jax.jit(lambda blocks: masks.Selected(blocks, 2)(q, k))(blocks)[0].astype(int)
    assert seen.tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
    ]


def test_tokens_beyond_the_selected_blocks_are_not_seen():
    mask = masks.Selected(jnp.array([[0, 1], [0, 1]]), 2)
    coords = Coords(jnp.array([-1, 0, 3, 4, 100]))
    seen = evaluate(mask, coords, coords, 1, batch_ndim=0)[0].astype(int)
    rows = [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]
    assert seen.tolist() == [rows[0], rows[1], rows[1], rows[0], rows[0]]


def test_one_step_of_decoding_has_its_own_selection():
    blocks = jnp.array(np.random.default_rng(3).integers(-1, 4, (1, N, 8, 2)))
    coords = Coords.arange(8)
    whole = evaluate(
        masks.Selected(blocks, 2, query_block_size=1, num_key_blocks=4), coords, coords
    )
    for step in (0, 5, 7):
        query = Coords.arange(1, offset=step).with_features(step=jnp.zeros(1, jnp.int32))
        mask = masks.Selected(
            blocks[:, :, step : step + 1], 2, query_block_size=1, num_key_blocks=4, rows="step"
        )
        chex.assert_trees_all_equal(evaluate(mask, query, coords)[..., 0, :], whole[..., step, :])


REFUSALS = {
    "a float window": (
        lambda: masks.Window(2.5),
        TypeError,
        "Window: left must be an integer, or integers [N], got float.",
    ),
    "a window of floats": (lambda: masks.Window(1, jnp.ones(3)), TypeError, "right must be"),
    "a boolean window": (lambda: masks.Window(True), TypeError, "got bool"),
    "a window without keys": (
        lambda: masks.Window(1, -2),
        ValueError,
        "Window: left + right must be at least 0, got 1 + -2. The window has no key.",
    ),
    "the last 0 keys": (lambda: masks.Window.last_n(0), ValueError, "at least 1, got 0"),
    "a dilation of 0": (
        lambda: masks.Dilated(4, 0),
        ValueError,
        "Dilated: dilation must be at least 1, got 0.",
    ),
    "dilations of 0": (lambda: masks.Dilated(4, jnp.array([2, 0])), ValueError, "got 0"),
    "a negative reach": (lambda: masks.Dilated(-1, 1), ValueError, "Dilated: window"),
    "an empty chunk": (lambda: masks.Chunked(0), ValueError, "Chunked: size must be at least 1"),
    "a negative prefix": (lambda: masks.Prefix(-1), ValueError, "Prefix: length"),
    "a stride of 0": (lambda: masks.Strided(0), ValueError, "Strided: stride"),
    "more summaries than positions": (
        lambda: masks.Strided(4, fixed=True, summary=5),
        ValueError,
        "Strided: summary must be at most the stride = 4, got 5.",
    ),
    "a kernel beyond the canvas": (
        lambda: masks.Neighborhood((8, 4), 3, dilation=2),
        ValueError,
        "at most the size of the axis 'col' = 4, got 3 · 2.",
    ),
    "a stride beyond the kernel": (
        lambda: masks.Neighborhood((8, 8), (3, 5), stride=(3, 6)),
        ValueError,
        "stride must be at most kernel_size = 5 along the axis 'col', got 6",
    ),
    "an empty kernel": (
        lambda: masks.Neighborhood((8, 8), 0),
        ValueError,
        "kernel_size must be at least 1 along each axis, got (0, 0).",
    ),
    "a grid without names": (
        lambda: masks.Neighborhood((8,), 3),
        ValueError,
        "shape must have one number per axis, 2 for the axes ('row', 'col'), got 1.",
    ),
    "half a kernel": (lambda: masks.Neighborhood((8, 8), 3.5), TypeError, "kernel_size must be"),
    "a dense list": (
        lambda: masks.Dense([[True]]),
        TypeError,
        "Dense: array must be a boolean array, got list. Write jnp.asarray(array, bool).",
    ),
    "a dense float": (
        lambda: masks.Dense(jnp.ones((2, 2))),
        TypeError,
        "Dense: array must be boolean, True where the query attends, got float32.",
    ),
    "a dense row": (lambda: masks.Dense(jnp.ones(2, bool)), ValueError, "at least [T, S], got [2]"),
    "selected floats": (
        lambda: masks.Selected(jnp.ones((2, 2)), 4),
        TypeError,
        "Selected: blocks must be an array of integers, got float32.",
    ),
    "a selected row": (lambda: masks.Selected(jnp.arange(2), 4), ValueError, "[nq, topk], got [2]"),
    "blocks of nothing": (
        lambda: masks.Selected(jnp.zeros((2, 2), int), 0),
        ValueError,
        "Selected: block_size must be at least 1, got 0. It counts positions.",
    ),
    "a block that is not there": (
        lambda: masks.Selected(jnp.array([[0, 2], [1, 0]]), 4),
        ValueError,
        "Selected: blocks must be in −1 ... 1, got 0 ... 2. Pass a larger num_key_blocks than 2.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_impossible_mask_is_refused(name):
    make, error, message = REFUSALS[name]
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_what_the_coordinates_lack_is_named():
    coords = Coords.arange(4)
    for mask, field in [
        (masks.SameSegment(), "segment_ids"),
        (masks.Padding(), "valid"),
        (masks.GlobalTokens("mark"), "mark"),
        (masks.Tree(), "enter"),
        (masks.Overlay(), "image"),
        (masks.Interval("first"), "first"),
        (masks.Prefix(), "prefix"),
        (masks.Neighborhood((2, 2), 2), "row"),
    ]:
        with pytest.raises(ValueError, match=rf"coordinates have no '{field}', only positions"):
            evaluate(mask, coords, coords)


def test_numbers_that_do_not_fit_the_heads_are_refused():
    coords = Coords.arange(4)
    with pytest.raises(ValueError, match=r"Window: left must be one .* \[N\] = \[3\], got \[2\]"):
        evaluate(masks.Window(jnp.array([1, 2])), coords, coords)
    with pytest.raises(ValueError, match=r"Prefix: length must be one number, got \[2\]. For one "):
        evaluate(masks.Prefix(jnp.array([1, 2])), coords, coords)
    marked = coords.with_features(is_global=jnp.arange(4))
    with pytest.raises(TypeError, match="GlobalTokens: the feature 'is_global' must be boolean"):
        evaluate(masks.GlobalTokens(), marked, marked)
