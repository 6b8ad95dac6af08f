"""Pictures of attention weights: over queries and keys, and over the places of an image."""

import chex
import matplotlib as mpl
import numpy as np
import pytest
from flax import nnx as flax_nnx
from matplotlib.axes import Axes

from flax_attn import nnx, visualize

mpl.use("Agg")
import matplotlib.pyplot as plt

WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(5), (3, 4)).astype(np.float32)
IMAGE = np.zeros((20, 40))


def drawn(ax):
    return ax.images[-1].get_array()


def sown_weights(module, *shape):
    """The attention weights of one image or sequence."""
    x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    capture = flax_nnx.capture(lambda m, x: m(x, sow_weights=True), flax_nnx.Intermediate)
    _, sown = flax_nnx.jit(capture)(module, x)
    return np.asarray(sown["attention_weights"][0])[0]


def test_a_row_for_each_query_and_a_column_for_each_key():
    ax = visualize.heat_map(WEIGHTS[0])
    assert isinstance(ax, Axes)
    chex.assert_trees_all_equal(drawn(ax), WEIGHTS[0])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("key", "query", "")
    assert ax.images[-1].colorbar.ax.get_ylabel() == "weight"


def test_heads_stand_side_by_side_in_one_range_of_colors():
    axes = visualize.heat_map(WEIGHTS)
    assert [ax.get_title() for ax in axes] == ["head 0", "head 1", "head 2"]
    for ax, head in zip(axes, WEIGHTS, strict=True):
        chex.assert_trees_all_equal(drawn(ax), head)
        assert ax.images[-1].get_clim() == (0, WEIGHTS.max())


def test_labels_name_queries_and_keys():
    ax = visualize.heat_map(WEIGHTS[0], query_labels=list("abcd"), key_labels=list("vwxyz"))
    assert [label.get_text() for label in ax.get_yticklabels()] == list("abcd")
    assert [label.get_text() for label in ax.get_xticklabels()] == list("vwxyz")
    chex.assert_trees_all_equal(ax.get_xticks(), np.arange(5))


def test_axes_given_are_used():
    _, axes = plt.subplots(1, 3)
    assert visualize.heat_map(WEIGHTS, ax=axes) == list(axes)
    assert visualize.heat_map(WEIGHTS[0], ax=axes[1]) is axes[1]
    assert visualize.where(IMAGE, WEIGHTS[0], ax=axes[2]) is axes[2]
    assert len(plt.get_fignums()) == 1


def test_the_weights_of_multi_head_attention_are_drawn():
    attention = nnx.MultiHeadAttention(2, 8, rngs=flax_nnx.Rngs(0))
    axes = visualize.heat_map(sown_weights(attention, 6, 8))
    for ax in axes:
        chex.assert_trees_all_close(drawn(ax).sum(-1), np.ones(6))


def test_the_weights_inside_a_window_are_drawn():
    attention = nnx.WindowAttention(8, num_heads=2, window_size=2, rngs=flax_nnx.Rngs(0))
    weights = sown_weights(attention, 4, 4, 8).mean(-3)  # [windows, M², M²]
    ax = visualize.where(IMAGE, weights[0, 3].reshape(2, 2), queries=[(1, 1)])
    assert drawn(ax).sum() == pytest.approx(1)


def test_the_grid_covers_the_image_and_rings_mark_the_queries():
    weights = np.arange(8.0).reshape(2, 4)
    ax = visualize.where(IMAGE, weights, queries=[(0, 0), (1, 3)])
    chex.assert_trees_all_equal(drawn(ax), weights)
    assert ax.images[-1].get_extent() == list(ax.images[0].get_extent())
    assert ax.images[-1].get_clim() == (0, 7)
    # Cells of 10 × 10 pixels, of which the first is centred on 0: the middles are 4.5, 14.5, ...
    assert [tuple(line.get_xydata()[0]) for line in ax.lines] == [(4.5, 4.5), (34.5, 14.5)]


ERRORS = {
    "batch": ("heat_map", (WEIGHTS[None],), {}, r"got \[1, 3, 4, 5\]\. Write weights\[0\]"),
    "one row": ("heat_map", (WEIGHTS[0, 0],), {}, r"must be \[T, S\] or \[N, T, S\], got \[5\]"),
    "not finite": ("heat_map", (WEIGHTS * np.nan,), {}, "weights must be finite, got 60 of 60"),
    "query labels": (
        "heat_map",
        (WEIGHTS,),
        {"query_labels": "abc"},
        "query_labels must be 4 labels, got 3",
    ),
    "key labels": ("heat_map", (WEIGHTS,), {"key_labels": "abc"}, "key_labels must be 5 labels"),
    "axes": ("heat_map", (WEIGHTS,), {"ax": []}, "ax must be 3 axes, got 0"),
    "empty": ("heat_map", (WEIGHTS[:, :0],), {}, r"at least one query, .* got \[3, 0, 5\]"),
    "heads": ("where", (IMAGE, WEIGHTS), {}, r"weights must be \[h, w\], got \[3, 4, 5\]\. Take"),
    "outside": (
        "where",
        (IMAGE, WEIGHTS[0]),
        {"queries": [(4, 0)]},
        r"queries must lie on the grid \[h, w\] = \[4, 5\], got \(4, 0\)",
    ),
    "infinite": ("where", (IMAGE, WEIGHTS[0] * np.inf), {}, "weights must be finite, got 20 of 20"),
}


@pytest.mark.parametrize(("name", "args", "options", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(name, args, options, message):
    with pytest.raises(ValueError, match=rf"^visualize\.{name}: .*" + message):
        getattr(visualize, name)(*args, **options)
