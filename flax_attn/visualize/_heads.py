"""The attention weights of many heads, as a grid of small pictures."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from flax_attn.visualize._draw import (
    Array,
    as_finite,
    check_axes,
    color_bar_of_figure,
    grid_of_axes,
)
from flax_attn.visualize._labels import Labels, check_labels, label_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 1024  # pictures


def heads(
    weights: Array | Sequence[Array],
    *,
    tokens: Labels | None = None,
    query_labels: Labels | None = None,
    key_labels: Labels | None = None,
    ax: "Sequence[Axes] | np.ndarray | None" = None,
) -> "list[Axes] | list[list[Axes]]":
    """Draw the attention weights of every head as a small picture.

    For one layer, the pictures stand in a square. For several layers, there is a row for each layer
    and a column for each head. All have the same range of colours, from 0 to the largest weight. If
    one large weight leaves the rest dark, such as that of a sink, lower the end of the range:
    `for ax in axes: ax.images[0].set_clim(0, 0.2)`.

    Args:
      weights: `[N, T, S]`, or a list of one such array for each layer. N may differ.
      tokens: Labels of queries and keys, if T = S; they are shown at the left and at the bottom.
      query_labels: Labels of the T queries.
      key_labels: Labels of the S keys.
      ax: The axes to draw on, one for each head, layer by layer; None for a new figure.

    Returns:
      A list of the N axes; for several layers, a list of such lists.

    Raises:
      ValueError: If a shape is wrong, a number is not finite, the number of labels or axes is
        wrong, or there are more than 1024 pictures.
      TypeError: If the weights are not arrays, or are traced.
      ImportError: If matplotlib is not installed.

    Example:
      >>> import jax
      >>> from flax_attn import attention_weights, visualize
      >>> q, k = jax.random.normal(jax.random.key(0), (2, 2, 5, 3, 8))  # 2 layers, 3 heads
      >>> weights = [attention_weights(q[i], k[i], is_causal=True) for i in range(2)]
      >>> axes = visualize.heads(weights, tokens=["The", "cat", "sat", "down", "."])
      >>> axes[1][2].get_title()
      'layer 1 head 2'
    """
    function = "visualize.heads"
    is_one = isinstance(weights, jax.Array | np.ndarray)
    layers = _as_layers(function, weights)
    lengths = layers[0].shape[-2], layers[0].shape[-1]
    labels = check_labels(function, lengths, tokens, query_labels, key_labels)
    counts = [len(layer) for layer in layers]
    if sum(counts) > MOST:
        raise ValueError(
            f"{function}: at most {MOST} pictures can be drawn, got {sum(counts)} of {len(layers)} "
            f"layers. Draw some of them, such as weights[:{max(1, MOST // max(counts))}]."
        )
    named = [(i, n) for i, count in enumerate(counts) for n in range(count)]
    if len(layers) == 1:
        columns = math.ceil(math.sqrt(counts[0]))
        rows = math.ceil(counts[0] / columns)
        places = [divmod(n, columns) for n in range(counts[0])]
    else:
        rows, columns, places = len(layers), max(counts), named
    if ax is None:
        grid = grid_of_axes(function, rows, columns, lengths, labels)
        axes = [grid[place] for place in places]
        for axis in set(grid.flat) - set(axes):
            axis.set_axis_off()
    else:
        axes = check_axes(function, ax, len(places))

    largest = max(float(layer.max()) for layer in layers)
    taken = set(places)
    for axis, (row, column), (i, n) in zip(axes, places, named, strict=True):
        axis.imshow(layers[i][n], cmap="inferno", vmin=0, vmax=largest, aspect="auto")
        is_left, is_bottom = column == 0, (row + 1, column) not in taken
        outer = labels[0] if is_left else None, labels[1] if is_bottom else None
        label_axes(axis, *outer, title=f"head {n}" if is_one else f"layer {i} head {n}")
        axis.title.set_fontsize("small")
        if not is_left:
            axis.set(ylabel="", yticks=[])
        if not is_bottom:
            axis.set(xlabel="", xticks=[])
    color_bar_of_figure(axes, "weight")
    return axes if is_one else [[axes.pop(0) for _ in range(count)] for count in counts]


def _as_layers(function: str, weights: Array | Sequence[Array]) -> list[np.ndarray]:
    if isinstance(weights, jax.Array | np.ndarray):
        if weights.ndim != 3:
            fix = (
                "weights[None] for one head"
                if weights.ndim == 2
                else ("weights[0] for one batch element, list(weights) if the first axis is layers")
            )
            raise ValueError(
                f"{function}: weights must be [N, T, S], or a list of them, got "
                f"{list(weights.shape)}. Write {fix}."
            )
        layers = [as_finite(function, "weights", weights)]
    elif not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(
            f"{function}: weights must be an array, or a list of arrays, got "
            f"{type(weights).__name__}."
        )
    else:
        layers = [as_finite(function, f"weights[{i}]", x) for i, x in enumerate(weights)]
    if not layers:
        raise ValueError(f"{function}: weights must have at least one layer, got none.")
    for i, layer in enumerate(layers):
        if layer.ndim != 3:
            fix = " Write [w[0] for w in weights]." if layer.ndim == 4 else ""
            raise ValueError(
                f"{function}: weights[{i}] must be [N, T, S], got {list(layer.shape)}.{fix}"
            )
        if layer.size == 0:
            raise ValueError(
                f"{function}: weights[{i}] must have at least one head, query and key, got "
                f"[N, T, S] = {list(layer.shape)}."
            )
        if layer.shape[1:] != layers[0].shape[1:]:
            raise ValueError(
                f"{function}: all layers must have the same [T, S] = {list(layers[0].shape[1:])}, "
                f"got {list(layer.shape[1:])} in weights[{i}]."
            )
    return layers
