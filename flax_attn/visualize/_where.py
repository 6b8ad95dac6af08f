"""The places that one place of an image attends to, drawn over the image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flax_attn.visualize._draw import Array, as_finite, as_grey, new_axes, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def where(
    image: Array,
    weights: Array,
    *,
    queries: Sequence[tuple[int, int]] = (),
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw attention weights on a grid of keys, as a heat map over the grey image.

    The grid covers the image, and rings mark the queries. The weights are those of one query, or
    the sum over queries that attend to different places, such as one in each window.

    Args:
      image: `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, of uint8, or of floats in 0 ... 1.
      weights: `[h, w]`: a row of attention weights, reshaped to the grid of its keys.
      queries: The places of the queries, (row, column) on the grid.
      ax: The axes to draw on; None for a new figure.

    Returns:
      The axes; `ax.images[-1].get_array()` is the weights.

    Raises:
      ValueError: If a shape is wrong, a number is not finite, the image lies outside 0 ... 1, or a
        query lies outside the grid.
      ImportError: If matplotlib is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import attention_weights, visualize
      >>> tokens = jax.random.normal(jax.random.key(0), (6 * 8, 1, 32))  # a grid of 6 × 8
      >>> weights = attention_weights(tokens, tokens, rows=slice(19, 20))  # row 2, column 3
      >>> ax = visualize.where(jnp.zeros((48, 64)), weights.reshape(6, 8), queries=[(2, 3)])
      >>> ax.images[-1].get_array().shape
      (6, 8)
    """
    function = "visualize.where"
    grey = as_grey(function, image)
    values = as_finite(function, "weights", weights)
    if values.ndim != 2:
        raise ValueError(
            f"{function}: weights must be [h, w], got {list(values.shape)}. "
            f"Take the row of one query: weights[n, t].reshape(h, w)."
        )
    height, width = values.shape
    for row, column in queries:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"{function}: queries must lie on the grid [h, w] = {[height, width]}, "
                f"got {(row, column)}."
            )
    ax = new_axes(function)[0] if ax is None else ax
    overlay(ax, grey, values, "weight", least=0)
    for row, column in queries:
        x = (column + 0.5) / width * grey.shape[1] - 0.5
        y = (row + 0.5) / height * grey.shape[0] - 0.5
        ax.plot(x, y, "o", markersize=6, markerfacecolor="none", markeredgecolor="white")
    return ax
