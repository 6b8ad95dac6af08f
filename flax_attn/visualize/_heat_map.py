"""Attention weights as a matrix of queries and keys."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flax_attn.visualize._draw import Array, as_finite, check_axes, color_bar, new_axes
from flax_attn.visualize._labels import Labels, check_labels, label_axes, picture_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def heat_map(
    weights: Array,
    *,
    tokens: Labels | None = None,
    query_labels: Labels | None = None,
    key_labels: Labels | None = None,
    ax: "Axes | Sequence[Axes] | np.ndarray | None" = None,
) -> "Axes | list[Axes]":
    """Draw attention weights, with a row for each query and a column for each key.

    Heads are drawn side by side; for many heads see `heads`. All have the same range of colours,
    from 0 to the largest weight. If there is no room for all labels, every second, third, ... is
    shown.

    Args:
      weights: `[T, S]`, or `[N, T, S]` for one picture per head. For long sequences,
        `flax_attn.attention_weights` returns a window of the weights.
      tokens: Labels of queries and keys, if they are the same T tokens; None for numbers. Control
        characters are escaped, and `□` stands for a character that the font does not have.
      query_labels: Labels of the T queries.
      key_labels: Labels of the S keys.
      ax: The axes to draw on: one for `[T, S]`, N for `[N, T, S]`; None for a new figure.

    Returns:
      The axes for `[T, S]`, a list of N axes for `[N, T, S]`.

    Raises:
      ValueError: If a shape is wrong, the weights have a batch axis, a number is not finite, or the
        number of labels or axes is wrong.
      TypeError: If the weights are traced, or `ax` is no axes.
      ImportError: If matplotlib is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flax_attn
      >>> q, k = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
      >>> weights = flax_attn.attention_weights(q, k, is_causal=True)
      >>> [ax.get_title() for ax in flax_attn.visualize.heat_map(weights)]
      ['head 0', 'head 1', 'head 2', 'head 3']
    """
    function = "visualize.heat_map"
    values = as_finite(function, "weights", weights)
    if values.ndim not in (2, 3):
        fix = " Write weights[0]." if values.ndim == 4 else ""
        raise ValueError(
            f"{function}: weights must be [T, S] or [N, T, S], got {list(values.shape)}.{fix}"
        )
    if values.size == 0:
        raise ValueError(
            f"{function}: weights must have at least one query, key and head, got "
            f"{list(values.shape)}."
        )
    heads = values.reshape(-1, *values.shape[-2:])
    lengths = heads.shape[1], heads.shape[2]
    labels = check_labels(function, lengths, tokens, query_labels, key_labels)
    if ax is None:
        axes = new_axes(function, len(heads), picture_size(lengths, labels))
    else:
        axes = check_axes(function, ax, len(heads))

    for n, (axis, head) in enumerate(zip(axes, heads, strict=True)):
        drawn = axis.imshow(head, cmap="inferno", vmin=0, vmax=heads.max(), aspect="auto")
        label_axes(axis, *labels, title=f"head {n}" if values.ndim == 3 else "")
    color_bar(drawn, "weight")
    return axes if values.ndim == 3 else axes[0]
