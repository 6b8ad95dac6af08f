"""Helpers of the package: axes, grey images, and heat maps over them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Array = jax.Array | np.ndarray
ROUNDING = 1e-3  # resized images may leave 0 ... 1 by this much
OPACITY = 0.6  # of a heat map, so that the image beneath stays visible
WIDEST = 40  # inches of a figure
SMALL, LEAST = 1.4, 0.95  # inches of a picture in a grid; the title needs the least
GAP, TITLE = 0.12, 0.2  # inches between pictures, and for the title
LUMINANCE = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue: ITU-R BT.601


def new_axes(function: str, count: int = 1, size: tuple[float, float] = (4.8, 3.6)) -> "list[Axes]":
    """Axes side by side in a new figure.

    Args:
      function: The public function, for messages.
      count: Number of axes.
      size: Inches of each; less for so many that the figure would be too wide.
    """
    plt = _pyplot(function)
    size = (min(size[0] * count, WIDEST), size[1])
    _, axes = plt.subplots(1, count, figsize=size, squeeze=False, layout="constrained")
    return list(axes[0])


def grid_of_axes(
    function: str,
    rows: int,
    columns: int,
    lengths: tuple[int, int],
    labels: tuple[Sequence[str] | None, Sequence[str] | None],
) -> "np.ndarray[Any, Any]":
    """Small axes `[rows, columns]` in a new figure, with room for labels at its left and bottom.

    The places are computed here, as the layout engine of matplotlib takes minutes for 1024 axes.

    Args:
      function: The public function, for messages.
      rows: Number of rows.
      columns: Number of columns.
      lengths: T and S, the tokens of a picture.
      labels: Labels of queries and keys. With labels, the pictures are larger.
    """
    plt = _pyplot(function)
    gaps = GAP + TITLE, GAP
    height, width = (
        max(LEAST, min(_side(length, shown), WIDEST / count - gap))
        for length, shown, count, gap in zip(lengths, labels, (rows, columns), gaps, strict=True)
    )
    left, bottom = (0.6 if shown is None else 1.3 for shown in labels)
    right, top = 0.9, 0.4
    total = (
        left + columns * (width + gaps[1]) - gaps[1] + right,
        bottom + rows * (height + gaps[0]) - gaps[0] + top,
    )
    places = {
        "left": left / total[0],
        "right": 1 - right / total[0],
        "bottom": bottom / total[1],
        "top": 1 - top / total[1],
        "wspace": gaps[1] / width,
        "hspace": gaps[0] / height,
    }
    _, axes = plt.subplots(rows, columns, figsize=total, squeeze=False, gridspec_kw=places)
    return axes


def _side(length: int, labels: Sequence[str] | None) -> float:
    """Inches of a side of a small picture."""
    return SMALL if labels is None else min(max(SMALL, 0.12 * length), 3.2)


def _pyplot(function: str) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            f"{function}: matplotlib must be installed for pictures. Run pip install matplotlib."
        ) from None
    return plt


def check_axes(function: str, ax: Any, count: int) -> "list[Axes]":
    """The given axes as a list; raise unless there are `count` of them.

    Args:
      function: The public function, for messages.
      ax: The argument: axes, or axes in lists or arrays.
      count: How many there must be.
    """
    axes = np.asarray(ax, object).ravel().tolist()
    for x in axes:
        if not hasattr(x, "imshow"):
            raise TypeError(
                f"{function}: ax must be matplotlib axes, got {type(x).__name__}. Make them by "
                f"plt.subplots()."
            )
    if len(axes) != count:
        raise ValueError(f"{function}: ax must be {count} axes, got {len(axes)}.")
    return axes


def check_known(function: str, name: str, tree: Any) -> None:
    """Raise if a leaf is traced: a picture needs its numbers."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree)):
        raise TypeError(
            f"{function}: {name} must be known numbers, got traced ones. Return them from the "
            f"function under jit, and draw outside of it."
        )


def as_finite(function: str, name: str, array: Array) -> np.ndarray:
    """Convert to float32 of NumPy, and check that all numbers are finite."""
    check_known(function, name, array)
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


def color_bar_of_figure(axes: "Sequence[Axes]", label: str) -> None:
    """Draw one colour bar at the right of the figure, for all axes."""
    drawn = axes[0].images[-1]
    boxes = [ax.get_position() for ax in axes]
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    right, top = max(box.x1 for box in boxes), max(box.y1 for box in boxes)
    bottom = min(box.y0 for box in boxes)
    width, height = figure.get_size_inches()
    tall = min(top - bottom, 4 / height)
    cax = figure.add_axes((right + 0.12 / width, top - tall, 0.12 / width, tall))
    figure.colorbar(drawn, cax=cax, label=label)


def color_bar(drawn: "AxesImage", label: str) -> None:
    """Draw a colour bar beside an image, with the height of the image."""
    ax = drawn.axes
    ax.figure.colorbar(drawn, cax=ax.inset_axes((1.02, 0, 0.04, 1)), label=label)
