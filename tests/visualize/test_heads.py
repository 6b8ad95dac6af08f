"""The grid of heads: which picture stands where, one range of colours, and labels at the edge."""

import chex
import matplotlib as mpl
import numpy as np
import pytest

from flax_attn import visualize

mpl.use("Agg")
import matplotlib.pyplot as plt

RNG = np.random.default_rng(0)
LAYERS = [RNG.dirichlet(np.ones(5), (heads, 5)).astype(np.float32) for heads in (3, 2)]
TOKENS = ["The", "cat", "sat", "down", "."]


def places(axes):
    """Row and column of each picture, from where it stands in the figure."""
    boxes = [ax.get_position() for ax in axes]
    tops = sorted({round(box.y1, 6) for box in boxes}, reverse=True)
    lefts = sorted({round(box.x0, 6) for box in boxes})
    return [(tops.index(round(box.y1, 6)), lefts.index(round(box.x0, 6))) for box in boxes]


def test_a_row_for_each_layer_and_a_column_for_each_head():
    axes = visualize.heads(LAYERS)
    assert [len(row) for row in axes] == [3, 2]
    for i, (row, layer) in enumerate(zip(axes, LAYERS, strict=True)):
        for n, (ax, head) in enumerate(zip(row, layer, strict=True)):
            assert ax.get_title() == f"layer {i} head {n}"
            chex.assert_trees_all_equal(ax.images[0].get_array(), head)
    flat = [ax for row in axes for ax in row]
    assert places(flat) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_the_heads_of_one_layer_stand_in_a_square():
    axes = visualize.heads(np.concatenate(LAYERS))
    assert [ax.get_title() for ax in axes] == [f"head {n}" for n in range(5)]
    assert places(axes) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_all_have_one_range_of_colors_and_one_color_bar():
    axes = visualize.heads([LAYERS[0], 0.5 * LAYERS[1]])
    ranges = {ax.images[0].get_clim() for row in axes for ax in row}
    assert ranges == {(0, LAYERS[0].max())}
    figure = axes[0][0].figure
    assert [ax.get_ylabel() for ax in figure.axes].count("weight") == 1


def test_labels_stand_at_the_left_and_at_the_bottom():
    first, second = visualize.heads(LAYERS, tokens=TOKENS)
    for ax, is_left, is_bottom in (
        (first[0], True, False),
        (first[1], False, False),
        (first[2], False, True),  # no picture stands below it
        (second[0], True, True),
        (second[1], False, True),
    ):
        assert [x.get_text() for x in ax.get_yticklabels()] == TOKENS * is_left
        assert [x.get_text() for x in ax.get_xticklabels()] == TOKENS * is_bottom
        assert (ax.get_ylabel(), ax.get_xlabel()) == ("query" * is_left, "key" * is_bottom)


@pytest.mark.parametrize("tokens", [None, TOKENS])
def test_no_text_leaves_the_figure_and_no_pictures_overlap(tokens):
    axes = visualize.heads(LAYERS, tokens=tokens)
    figure = axes[0][0].figure
    figure.draw_without_rendering()
    whole = figure.bbox
    tight = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert (whole.min <= tight.min).all(), (tight, whole)
    assert (tight.max <= whole.max).all(), (tight, whole)
    flat = [ax.get_tightbbox() for row in axes for ax in row]
    assert not any(a.overlaps(b) for i, a in enumerate(flat) for b in flat[:i])


def test_axes_given_are_used():
    _, given = plt.subplots(1, 5)
    axes = visualize.heads(LAYERS, ax=given)
    assert [ax for row in axes for ax in row] == list(given)
    assert len(plt.get_fignums()) == 1


def test_the_pictures_of_a_large_grid_are_smaller():
    few, many = ([np.ones((1, 20, 20))] * count for count in (2, 30))
    heights = [
        visualize.heads(layers, tokens=["a"] * 20)[0][0].bbox.height for layers in (few, many)
    ]
    assert heights[0] == pytest.approx(240)  # 0.12 inches for each token, at 100 pixels each
    assert heights[1] < 110


ERRORS = {
    "batch": (
        (LAYERS[0][None],),
        {},
        r"must be \[N, T, S\], or a list of them, got \[1, 3, 5, 5\]\. Write weights\[0\]",
    ),
    "one head": ((LAYERS[0][0],), {}, r"got \[5, 5\]\. Write weights\[None\]"),
    "batches": (([LAYERS[0][None]],), {}, r"weights\[0\] must be .*Write \[w\[0\] for w in"),
    "no layer": (([],), {}, "at least one layer, got none"),
    "no head": (([LAYERS[0][:0]],), {}, r"got \[N, T, S\] = \[0, 5, 5\]"),
    "lengths": (
        ([LAYERS[0], LAYERS[1][:, :4]],),
        {},
        r"the same \[T, S\] = \[5, 5\], got \[4, 5\] in weights\[1\]",
    ),
    "not finite": (([LAYERS[0], LAYERS[1] * np.nan],), {}, r"weights\[1\] must be finite"),
    "tokens": ((LAYERS,), {"tokens": TOKENS[:3]}, "tokens must be 5 labels, got 3"),
    "axes": ((LAYERS,), {"ax": [plt.figure().add_subplot()]}, "ax must be 5 axes, got 1"),
    "too many": (([LAYERS[0]] * 400,), {}, r"at most 1024 pictures .* got 1200 .*weights\[:341\]"),
}


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(args, options, message):
    with pytest.raises(ValueError, match=r"^visualize\.heads: .*" + message):
        visualize.heads(*args, **options)


@pytest.mark.parametrize("weights", ["weights", None])
def test_weights_that_are_no_arrays_are_refused(weights):
    with pytest.raises(TypeError, match=r"^visualize\.heads: weights must be an array, or a list"):
        visualize.heads(weights)
