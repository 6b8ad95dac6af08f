"""Pictures of masks: every pair of a few tokens, the block map of any number."""

import tracemalloc

import chex
import jax
import matplotlib as mpl
import numpy as np
import pytest

from flax_attn import Coords, make_plan, masks, visualize
from flax_attn.coords import Aligned, PerHead
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL
from flax_attn.visualize import _pairs

mpl.use("Agg")
import matplotlib.pyplot as plt

CAUSAL = masks.Causal()
RNG = np.random.default_rng(0)


def pairs(ax):
    """The visible pairs that are drawn."""
    seen = np.asarray(ax.images[-1].get_array())
    assert seen.dtype == bool
    return seen


def kinds(ax):
    """The block map that is drawn."""
    return np.asarray(ax.images[0].get_array())


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def darkness(ax, length_q, length_k):
    """From 0 to 1, at the middle of every cell of the picture that is saved."""
    figure = ax.figure
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    places = [(s, t) for t in range(length_q) for s in range(length_k)]
    x, y = ax.transData.transform(places).T.astype(int)
    return 1 - pixels[len(pixels) - 1 - y, x].mean(-1).reshape(length_q, length_k)


def test_every_pair_of_a_few_tokens_is_a_cell():
    ax = visualize.mask(CAUSAL, Coords.arange(4), tokens=list("abcd"))
    chex.assert_trees_all_equal(pairs(ax), np.tri(4, dtype=bool))
    assert [x.get_text() for x in ax.get_yticklabels()] == list("abcd")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) == (
        "key",
        "query",
        "Causal()",
    )
    assert legend(ax) == ["visible: 62.5 %"]


@pytest.mark.parametrize("block", [(1, 1), (4, 8), None])
def test_visible_pairs_are_dark_and_others_light_on_every_kind_of_block(block):
    mask = CAUSAL & masks.Window(20) | masks.Prefix(3)
    ax = visualize.mask(mask, Coords.arange(40), block=block)
    dark = darkness(ax, 40, 40)
    assert dark[pairs(ax)].min() > 0.6
    assert dark[~pairs(ax)].max() < 0.3


def test_the_block_map_stands_behind_the_pairs():
    coords = Coords.from_segments(np.repeat([0, 1, 2], [9, 5, 16]))
    mask = CAUSAL & masks.SameSegment()
    ax = visualize.mask(mask, coords, block=(4, 8))
    plan = make_plan(mask, coords, block=(4, 8))
    chex.assert_trees_all_equal(kinds(ax), np.asarray(plan.kinds)[0, 0])
    assert set(kinds(ax).flat) == {EMPTY, PARTIAL, FULL}
    # Blocks of 4 × 8 tokens, of which the first is centred on token 0; 8 · 4 > 30 tokens are cut.
    assert list(ax.images[0].get_extent()) == [-0.5, 31.5, 31.5, -0.5]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 29.5), (29.5, -0.5))
    chex.assert_trees_all_equal(ax.get_xticks(minor=True), np.array([7.5, 15.5, 23.5]))


def test_the_legend_counts_pairs_and_blocks():
    ax = visualize.mask(CAUSAL, Coords.arange(4), block=(2, 2))
    expected = ["visible: 62.5 %", "full: 25.0 %", "partial: 50.0 %", "empty: 25.0 %"]
    assert legend(ax) == expected
    assert ax.get_legend().get_title().get_text() == "blocks of\n2 × 2"
    ax = visualize.mask(masks.Window(0), Coords.arange(2**17), block=(512, 512))
    assert legend(ax) == ["full: 0 %", "partial: 0.4 %", "empty: 99.6 %"]
    ax = visualize.mask(~masks.Window(0), Coords.arange(2048), block=(4, 4))
    assert legend(ax) == ["full: 99.8 %", "partial: 0.2 %", "empty: 0 %"]


def test_the_picture_is_that_of_one_batch_element_and_one_head():
    """Of every part that may differ: tables, arrays, lists of blocks, coordinates, validity."""
    batch, num_heads, length_q, length_k = 2, 3, 4, 6
    array = RNG.random((batch, num_heads, length_q, length_k)) < 0.8
    bias = RNG.integers(-3, 3, (num_heads, length_k))
    level = RNG.integers(0, 3, (length_q, num_heads))
    valid = np.arange(length_k) < np.array([[5], [4]])
    left = np.array([1, 3, 9])
    starts = np.array([2, 0])

    @masks.relation
    def higher(q, k, *, table):
        return q.level + table.values[..., None, :] > -1

    query = Coords.arange(length_q, starts).with_features(level=PerHead(level))
    key = Coords.arange(length_k).with_features(valid=valid)
    mask = masks.Window(left) & masks.Dense(array) & higher(table=Aligned(bias, "ns"))
    pictures = []
    for b, n in np.ndindex(batch, num_heads):
        ax = visualize.mask(mask, query, key, batch=b, head=n)
        back = (starts[b] + np.arange(length_q))[:, None] - np.arange(length_k)
        expected = (back >= 0) & (back <= left[n]) & array[b, n] & valid[b]
        expected &= level[:, n, None] + bias[n] > -1
        chex.assert_trees_all_equal(pairs(ax), expected)
        pictures.append(expected.tobytes())
    assert len(set(pictures)) == batch * num_heads


@masks.relation
def is_marked(q, k, *, marks):
    return marks.values[..., None, :] & (q.positions >= 0)


def test_a_mask_without_a_block_map_is_drawn_pair_by_pair_only():
    """`make_plan` has no bounds of an array over the keys alone."""
    marks = RNG.random(300) < 0.5
    mask, coords = is_marked(marks=Aligned(marks, "s")), Coords.arange(300)
    ax = visualize.mask(mask, coords, rows=slice(0, 30), cols=slice(7, 107))
    chex.assert_trees_all_equal(pairs(ax), np.broadcast_to(marks[7:107], (30, 100)))
    assert len(ax.images) == 1
    for options in ({}, {"rows": slice(0, 30), "cols": slice(7, 107), "block": (8, 8)}):
        with pytest.raises(NotImplementedError, match=r"^visualize\.mask: .*Draw at most 256"):
            visualize.mask(mask, coords, **options)


def test_head_ids_are_the_numbers_of_heads_in_the_tables():
    mask = masks.Window(np.array([0, 1, 2, 3]))
    ax = visualize.mask(mask, Coords.arange(6), head_ids=np.array([3, 1]), head=1)
    chex.assert_trees_all_equal(pairs(ax), np.tri(6, dtype=bool) & ~np.tri(6, k=-2, dtype=bool))


def test_batch_elements_are_counted_through_all_batch_axes():
    segments = RNG.integers(0, 2, (2, 3, 5))
    for b in range(6):
        ax = visualize.mask(masks.SameSegment(), Coords.from_segments(segments), batch=b)
        own = segments.reshape(6, 5)[b]
        chex.assert_trees_all_equal(pairs(ax), own[:, None] == own)


def test_a_mask_that_is_the_same_for_all_is_that_of_any_head_and_batch_element():
    ax = visualize.mask(CAUSAL, Coords.arange(3), head=7, batch=5)
    chex.assert_trees_all_equal(pairs(ax), np.tri(3, dtype=bool))


def test_a_million_tokens_are_drawn_without_looking_at_a_pair(monkeypatch):
    def refuse(*_):
        raise AssertionError("pairs were evaluated")

    planned = []

    def plan(mask, query, key, block, **options):
        made = make_plan(mask, query, key, block, **options)
        planned.append(made.kinds.size)
        return made

    monkeypatch.setattr(_pairs, "_visible", refuse)
    monkeypatch.setattr(_pairs, "make_plan", plan)
    mask, coords = CAUSAL & masks.Window(4095), Coords.arange(1_000_000)
    visualize.mask(mask, coords[:1000])  # imports and fonts
    tracemalloc.start()
    ax = visualize.mask(mask, coords)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e7
    assert planned == [250 * 250, 245 * 245]
    # Blocks of 4096: a query sees keys of its own block and of the one before it, in part.
    index = np.arange(245)
    back = index[:, None] - index
    chex.assert_trees_all_equal(kinds(ax), np.where((back == 0) | (back == 1), PARTIAL, EMPTY))
    assert ax.get_legend().get_title().get_text() == "blocks of\n4,096 × 4,096"


@pytest.mark.parametrize(
    ("lengths", "block"),
    [
        ((4, 4), None),
        ((9, 9), (2, 2)),
        ((40, 40), (8, 8)),
        ((256, 256), (32, 32)),
        ((257, 257), (2, 2)),
        ((1, 4096), (1, 16)),
        ((2**20, 1000), (4096, 4)),
    ],
)
def test_the_size_of_blocks_is_a_power_of_2(lengths, block):
    ax = visualize.mask(masks.Full(), *map(Coords.arange, lengths))
    title = ax.get_legend().get_title().get_text()
    assert title == ("" if block is None else f"blocks of\n{block[0]:,} × {block[1]:,}")
    assert max(kinds(ax).shape) <= 256


def test_a_window_of_a_long_sequence_is_drawn_pair_by_pair():
    """Also one of a mask that holds an array, and with labels of the whole sequence."""
    length = 1000
    array = RNG.random((length, length)) < 0.5
    rows, cols = slice(500, 530), slice(-520, 980, 20)
    numbers = np.arange(length)
    tokens = [f"t{i}" for i in numbers]
    mask = masks.Dense(array) & CAUSAL
    ax = visualize.mask(mask, Coords.arange(length), rows=rows, cols=cols, tokens=tokens)
    expected = (array & np.tri(length, dtype=bool))[rows, cols]
    chex.assert_trees_all_equal(pairs(ax), expected)
    shown = [x.get_text() for x in ax.get_xticklabels()]
    assert shown == [tokens[numbers[cols][i]] for i in ax.get_xticks().astype(int)]


def test_ticks_are_the_numbers_of_the_tokens():
    coords = Coords.arange(3_000_000)
    ax = visualize.mask(CAUSAL, coords, rows=slice(2_000_000, 2_000_010), cols=slice(0, None, 10))
    ax.figure.canvas.draw()
    shown = [x.get_text() for x in ax.get_yticklabels()]
    assert {"2,000,000", "2,000,003"} <= set(shown) or {"2,000,004"} <= set(shown)
    ticks = ax.get_xticks()
    wanted = [f"{int(10 * x):,}" if 0 <= x < 300_000 else "" for x in ticks]
    assert [x.get_text() for x in ax.get_xticklabels()] == wanted


def test_axes_given_are_used():
    _, given = plt.subplots()
    assert visualize.mask(CAUSAL, Coords.arange(300), ax=given) is given
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("lengths", [(4, 4), (60, 120), (120, 60), (64, 80), (1, 40), (40, 1)])
def test_no_text_leaves_the_figure(lengths):
    query, key = map(Coords.arange, lengths)
    mask = (CAUSAL & masks.Window(1000, 2000) | masks.Prefix(1000)) & ~masks.Dilated(100, 10)
    ax = visualize.mask(mask, query, key)
    ax.figure.canvas.draw()
    assert ax.get_title(loc="left").count("\n") == 1
    tight = ax.figure.get_tightbbox().transformed(ax.figure.dpi_scale_trans)
    assert (tight.min >= ax.figure.bbox.min - 1).all(), tight
    assert (tight.max <= ax.figure.bbox.max + 1).all(), (tight, ax.figure.bbox)


FOUR = Coords.arange(4)
TABLE = masks.Window(np.array([1, 2, 3]))
TWO, THREE = (Coords.from_lengths(np.ones(n, int), 4) for n in (2, 3))
ERRORS = {
    "array": ((np.ones((4, 4), bool), FOUR), {}, TypeError, r"Wrap an array: masks\.Dense"),
    "class": ((masks.Causal, FOUR), {}, TypeError, r"Call it: masks\.Causal\(\)"),
    "swapped": ((FOUR, CAUSAL), {}, TypeError, r"Write visualize\.mask\(mask, query_coords\)"),
    "length": ((CAUSAL, 4), {}, TypeError, r"query_coords must be Coords, got int.*arange"),
    "keys": ((CAUSAL, FOUR, 4), {}, TypeError, "key_coords must be Coords, got int"),
    "field": (
        (masks.SameSegment(), FOUR),
        {},
        ValueError,
        r"have no 'segment_ids', .*positions\. Pass query_coords=Coords\.from_segments",
    ),
    "no tokens": ((CAUSAL, FOUR[:0]), {}, ValueError, "at least one query and one key, got T = 0"),
    "array of a mask": (
        (masks.Dense(np.ones((4, 5), bool)), FOUR),
        {},
        ValueError,
        r"must broadcast to \[N, T, S\] = \[1, 4, 4\], got \[1, 4, 5\]|got \[1, 4, 5\]",
    ),
    "batches": ((CAUSAL, TWO, THREE), {}, ValueError, r"broadcast, got \[2\], \[3\]"),
    "heads": (
        (TABLE & masks.Dense(np.ones((2, 4, 4), bool)), FOUR),
        {},
        ValueError,
        r"the same number of heads N, got \[2, 3\]",
    ),
    "head": ((TABLE, FOUR), {"head": 3}, ValueError, r"head must lie in 0 \.\.\. 2, got 3"),
    "number of a head": (
        (TABLE, FOUR),
        {"head_ids": np.array([1, 3]), "head": 1},
        ValueError,
        r"head_ids\[1\] must lie in 0 \.\.\. 2, as left of Window has 3 numbers, got 3",
    ),
    "negative head": ((CAUSAL, FOUR), {"head": -1}, ValueError, "head must be at least 0, got -1"),
    "head of these": (
        (CAUSAL, FOUR),
        {"head": 1, "head_ids": np.array([5])},
        ValueError,
        r"head must lie in 0 \.\.\. 0, got 1",
    ),
    "head ids": (
        (CAUSAL, FOUR),
        {"head_ids": np.array([[0]])},
        ValueError,
        r"head_ids must be \[N\], got \[1, 1\]",
    ),
    "batch": ((CAUSAL, TWO), {"batch": 2}, ValueError, r"batch must lie in 0 \.\.\. 1, got 2"),
    "block": ((CAUSAL, FOUR), {"block": 2}, ValueError, r"got 2\. Write block=\(256, 256\)"),
    "block size": ((CAUSAL, FOUR), {"block": (0, 2)}, ValueError, r"at least 1, got \(0, 2\)"),
    "fraction": ((CAUSAL, FOUR), {"block": (1, 2.5)}, TypeError, "one whole number, got 2.5"),
    "blocks": (
        (CAUSAL, Coords.arange(1_000_000)),
        {"block": (128, 128)},
        ValueError,
        r"at most 512 by 512 blocks .* got 7813 by 7813\. Give a block of at least \(1954, 1954\)",
    ),
    "row": ((CAUSAL, FOUR), {"rows": 2}, TypeError, r"got 2\. Write rows=slice\(2, 3\)"),
    "columns": ((CAUSAL, FOUR), {"cols": [1, 2]}, TypeError, "cols must be a slice, got"),
    "no row": (
        (CAUSAL, FOUR),
        {"rows": slice(4, 9)},
        ValueError,
        r"some of the 4 tokens, got slice\(4, 9, None\)",
    ),
    "backwards": (
        (CAUSAL, FOUR),
        {"cols": slice(None, None, -1)},
        ValueError,
        "step of cols must be at least 1",
    ),
    "step": ((CAUSAL, FOUR), {"rows": slice(0, 4, 0)}, ValueError, "step of at least 1, got"),
    "fraction of rows": ((CAUSAL, FOUR), {"rows": slice(0, 1.5)}, ValueError, "whole numbers"),
    "no axes": ((CAUSAL, FOUR), {"ax": 3}, TypeError, "ax must be matplotlib axes, got int"),
    "tokens": ((CAUSAL, FOUR), {"tokens": "abc"}, ValueError, "tokens must be 4 labels, got 3"),
}


@pytest.mark.parametrize(("args", "options", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(args, options, kind, message):
    with pytest.raises(kind, match=r"^visualize\.mask: .*" + message):
        visualize.mask(*args, **options)
    assert not plt.get_fignums()


def test_under_jit_it_says_that_a_picture_needs_numbers():
    with pytest.raises(TypeError, match=r"^visualize\.mask: coordinates must be known numbers"):
        jax.jit(lambda i: visualize.mask(CAUSAL, Coords(i)).get_title())(np.arange(4))
    with pytest.raises(TypeError, match=r"^visualize\.mask: mask must be known numbers"):
        jax.jit(lambda n: visualize.mask(masks.Window(n), FOUR).get_title())(2)


def test_more_axes_than_one_are_refused():
    with pytest.raises(ValueError, match=r"^visualize\.mask: ax must be 1 axes, got 2"):
        visualize.mask(CAUSAL, FOUR, ax=plt.subplots(1, 2)[1])
