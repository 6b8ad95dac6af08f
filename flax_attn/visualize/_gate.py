"""A gate, drawn over its image."""

from typing import TYPE_CHECKING

import numpy as np

from flax_attn.visualize._draw import Array, as_finite, as_grey, new_axes, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gate(
    image: Array,
    gate: Array | tuple[Array, ...] | list[Array],
    *,
    features: Array | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the share of the features that passes a gate, as a heat map over the grey image.

    m_yx = Σ_c g_yxc |f_yxc| / Σ_c |f_yxc|

    with gate g and features f. Without `features` all f are 1, and m is the mean over the channels.
    If the gate has one channel, m is the gate itself. A gate over channels only (SE, ECA) is the
    same everywhere and needs `features`: the picture then shows where the open channels are active.
    Places where all features are 0 stay grey.

    The colours cover the range from the smallest to the largest m, which may be narrow: see the
    colour bar.

    Args:
      image: `[H, W]`, `[H, W, 1]` or `[H, W, 3]`, of uint8, or of floats in 0 ... 1.
      gate: The gate of one image, as a module sows it; broadcasts to `[h, w, C]`. If there are
        several, such as the pair of coordinate attention, their product is drawn.
      features: The array `[h, w, C]` that was multiplied by the gate: the input of the module.
      ax: The axes to draw on; None for a new figure.

    Returns:
      The axes; `ax.images[-1].get_array()` is m, `[h, w]`.

    Raises:
      ValueError: If a shape is wrong, an array has a batch axis, a number is not finite, the image
        lies outside 0 ... 1, or `features` is missing for a gate over channels only.
      ImportError: If matplotlib is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from flax_attn import nnx as attention, visualize
      >>> x = jax.random.normal(jax.random.key(0), (8, 16, 16, 32))
      >>> model = attention.CBAM(32, rngs=nnx.Rngs(0))
      >>> _, sown = nnx.capture(model, nnx.Intermediate)(x)
      >>> ax = visualize.gate(jnp.zeros((64, 64, 3)), sown["spatial"]["gate"][0][0])
      >>> ax.images[-1].get_array().shape
      (16, 16)
    """
    function = "visualize.gate"
    grey = as_grey(function, image)
    product = _product(function, gate)
    if features is None:
        if product.shape[:2] == (1, 1):
            raise ValueError(
                f"{function}: gate must vary over places, got {list(product.shape)}. "
                f"Pass features, the module's input [h, w, C], to draw where they pass the gate."
            )
        channels = product.shape[-1]
        label = "gate" if channels == 1 else f"gate, mean of {channels} channels"
        shares = product.mean(-1)
    else:
        label = "gate, mean by |features|"
        shares = _shares(function, product, as_finite(function, "features", features))
    ax = new_axes(function)[0] if ax is None else ax
    overlay(ax, grey, shares, label)
    return ax


def _product(function: str, gate: Array | tuple[Array, ...] | list[Array]) -> np.ndarray:
    parts = [
        as_finite(function, "gate", part)
        for part in (gate if isinstance(gate, tuple | list) else [gate])
    ]
    shapes = [list(part.shape) for part in parts]
    for part in parts:
        if part.ndim != 3:
            fix = " Write gate[0]." if part.ndim == 4 else ""
            raise ValueError(f"{function}: gate must be [h, w, C], got {list(part.shape)}.{fix}")
    try:
        shape = np.broadcast_shapes(*(part.shape for part in parts))
    except ValueError:
        raise ValueError(
            f"{function}: gates must broadcast to one [h, w, C], got {shapes}."
        ) from None
    return np.prod([np.broadcast_to(part, shape) for part in parts], axis=0)


def _shares(function: str, gate: np.ndarray, features: np.ndarray) -> np.ma.MaskedArray:
    try:
        fits = np.broadcast_shapes(gate.shape, features.shape) == features.shape
    except ValueError:
        fits = False
    if features.ndim != 3 or not fits:
        raise ValueError(
            f"{function}: features must be [h, w, C], to which the gate {list(gate.shape)} "
            f"broadcasts, got {list(features.shape)}."
        )
    activity = np.abs(features)
    return np.ma.divide((gate * activity).sum(-1), activity.sum(-1))  # 0 / 0 is masked
