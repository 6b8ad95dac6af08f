"""Helpers of the package: axes, grey images, and heat maps over them."""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Array = jax.Array | np.ndarray
ROUNDING = 1e-3  # resized images may leave 0 ... 1 by this much
OPACITY = 0.6  # of a heat map, so that the image beneath stays visible
LUMINANCE = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue: ITU-R BT.601


def new_axes(function: str, count: int = 1) -> "list[Axes]":
    """Axes side by side in a new figure."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            f"{function}: matplotlib must be installed for pictures. Run pip install matplotlib."
        ) from None
    size = (4.8 * count, 3.6)
    _, axes = plt.subplots(1, count, figsize=size, squeeze=False, layout="constrained")
    return list(axes[0])


def as_finite(function: str, name: str, array: Array) -> np.ndarray:
    """Convert to float32 of NumPy, and check that all numbers are finite."""
    values = np.asarray(array, np.float32)
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise ValueError(
            f"{function}: {name} must be finite, got {count} of {values.size} numbers that are not."
        )
    return values


def as_grey(function: str, image: Array) -> np.ndarray:
    """The luminance `[H, W]`, from 0 to 1."""
    pixels = np.asarray(image)
    if pixels.ndim == 4:
        raise ValueError(
            f"{function}: image must be one image, got {list(pixels.shape)}. Write image[0]."
        )
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3)):
        raise ValueError(
            f"{function}: image must be [H, W], [H, W, 1] or [H, W, 3], got {list(pixels.shape)}."
        )
    if pixels.dtype == np.uint8:
        pixels = pixels / np.float32(255)
    values = as_finite(function, "image", pixels)
    if values.min() < -ROUNDING or values.max() > 1 + ROUNDING:
        raise ValueError(
            f"{function}: image must be uint8, or lie in 0 ... 1, got {values.min():.3g} ... "
            f"{values.max():.3g}. Undo the normalisation of the network's input."
        )
    if values.ndim == 2:
        return values
    return values[..., 0] if values.shape[-1] == 1 else values @ LUMINANCE


def overlay(
    ax: "Axes", grey: np.ndarray, values: np.ndarray, label: str, least: float | None = None
) -> None:
    """Draw a translucent heat map `[h, w]` with a colour bar over a grey image `[H, W]`."""
    height, width = grey.shape
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)  # a coarser map covers the whole image
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1)
    drawn = ax.imshow(
        values, cmap="inferno", vmin=least, alpha=OPACITY, interpolation="bilinear", extent=frame
    )
    ax.set_axis_off()
    color_bar(drawn, label)


def color_bar(drawn: "AxesImage", label: str) -> None:
    """Draw a colour bar beside an image, with the height of the image."""
    ax = drawn.axes
    ax.figure.colorbar(drawn, cax=ax.inset_axes((1.02, 0, 0.04, 1)), label=label)
