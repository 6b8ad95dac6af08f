"""The mask of neighborhood attention, on grids of any number of axes."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flax_attn._integers import LARGEST
from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.coords import clamp_positions
from flax_attn.masks._mask import Mask

PerAxis = int | Sequence[int]


@pytree
class Neighborhood(Mask):
    """A pixel attends to the `kernel_size` nearest pixels along each axis.

    Along an axis of n pixels, let K be the kernel size, σ the stride, and g_i the leader of the σ
    pixels that share a neighborhood:

    g_i = min(⌊i / σ⌋ σ + ⌊σ / 2⌋, n − 1)
    start_i = clip(g_i − ⌊K / 2⌋, 0, n − K)
    M_ij = (start_i ≤ j < start_i + K)

    The mask is true where M is true along every axis. Every query has exactly K keys per axis.

    On a causal axis the leader is the last pixel of its group, g_i = min(⌊i / σ⌋ σ + σ − 1, n − 1),
    with start_i = max(g_i − K + 1, 0) and M_ij = (start_i ≤ j ≤ i).

    With dilation δ, a pixel attends only to pixels with the same remainder modulo δ. The equations
    hold for these pixels, with ⌊i / δ⌋ and ⌊j / δ⌋ in place of i and j, and
    n = ⌈(size − i mod δ) / δ⌉.

    This is NATTEN's neighborhood, also for grids that are not square and for even kernels, which
    reach one pixel further to the left. At a border it is shifted, not clipped: `Window` and
    similar masks have fewer keys there.

    Attributes:
      shape: Number of pixels along each axis, such as (height, width).
      kernel_size: Number of keys along each axis, or one number for all axes. At most the size of
        the axis divided by the dilation.
      stride: Number of neighboring queries that share a neighborhood, per axis or for all axes. At
        most `kernel_size`.
      dilation: Distance between neighboring keys in pixels, per axis or for all axes.
      is_causal: True if a query attends to no later key along the axis, per axis or for all axes.
      axes: Names of the features with the index of a token along each axis, as `Coords.grid` makes
        them; `("positions",)` for a sequence.

    Example:
      >>> from flax_attn import masks
      >>> masks.Neighborhood((32, 48), kernel_size=7)
      Neighborhood(shape=(32, 48), kernel_size=(7, 7))
      >>> masks.Neighborhood((8, 64, 64), (4, 7, 7), is_causal=(True, False, False),
      ...                    axes=("frame", "row", "col")).is_causal
      (True, False, False)

    References:
      Hassani, Walton, Li, Li, Shi, "Neighborhood Attention Transformer", CVPR 2023,
      arXiv:2204.07143; Hassani, Shi, "Dilated Neighborhood Attention Transformer", 2022,
      arXiv:2209.15001; Hassani, Hwu, Shi, "Faster Neighborhood Attention: Reducing the O(n²) Cost
      of Self Attention at the Threadblock Level", NeurIPS 2024, arXiv:2403.04690 (causal axes);
      Hassani, Zhou, Kane, Huang, Chen, Shi, Walton, Hoehnerbach, Thakkar, Isaev, Zhang, Xu, Wu,
      Hwu, Liu, Shi, "Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the
      Speed of Light", 2025, arXiv:2504.16922 (stride).
    """

    shape: PerAxis = static()
    kernel_size: PerAxis = static()
    stride: PerAxis = static(default=1)
    dilation: PerAxis = static(default=1)
    is_causal: bool | Sequence[bool] = static(default=False)
    axes: Sequence[str] = static(default=("row", "col"))

    def __post_init__(self) -> None:
        axes = (self.axes,) if isinstance(self.axes, str) else tuple(self.axes)
        object.__setattr__(self, "axes", axes)
        for name in ("shape", "kernel_size", "stride", "dilation"):
            values = _per_axis(name, getattr(self, name), axes, _size)
            object.__setattr__(self, name, values)
            if min(values) < 1:
                raise ValueError(
                    f"Neighborhood: {name} must be at least 1 along each axis, got {values}."
                )
        object.__setattr__(self, "is_causal", _per_axis("is_causal", self.is_causal, axes, bool))
        for axis, size, kernel, stride, dilation, _ in self._settings():
            if kernel * dilation > size:
                raise ValueError(
                    f"Neighborhood: kernel_size · dilation must be at most the size of the axis "
                    f"{axis!r} = {size}, got {kernel} · {dilation}. Use a smaller kernel."
                )
            if stride > kernel:
                raise ValueError(
                    f"Neighborhood: stride must be at most kernel_size = {kernel} along the axis "
                    f"{axis!r}, got {stride}. There would be gaps between the neighborhoods."
                )

    def _settings(self) -> list[tuple[Any, ...]]:
        fields = (self.axes, self.shape, self.kernel_size, self.stride, self.dilation)
        return list(zip(*fields, self.is_causal, strict=True))  # type: ignore[arg-type]

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        parts = (
            _near(clamp_positions(getattr(q, axis)), clamp_positions(getattr(k, axis)), *settings)
            for axis, *settings in self._settings()
        )
        return functools.reduce(operator.and_, parts)

    def __repr__(self) -> str:
        parts = [f"shape={self.shape}", f"kernel_size={self.kernel_size}"]
        defaults = {"stride": 1, "dilation": 1, "is_causal": False}
        for name, value in defaults.items():
            values = getattr(self, name)
            if set(values) != {value}:
                parts.append(f"{name}={values}")
        if self.axes != ("row", "col"):
            parts.append(f"axes={self.axes}")
        return f"Neighborhood({', '.join(parts)})"


def _near(
    i: Int[Array, "..."],
    j: Int[Array, "..."],
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    is_causal: bool,
) -> Bool[Array, "..."]:
    """The mask along one axis."""
    if dilation == 1:
        return _near_undilated(i, j, size, kernel, stride, is_causal)
    remainder = i % dilation
    count = (size - 1 - remainder) // dilation + 1
    near = _near_undilated(i // dilation, j // dilation, count, kernel, stride, is_causal)
    return (remainder == j % dilation) & near


def _near_undilated(
    i: Int[Array, "..."],
    j: Int[Array, "..."],
    size: int | Int[Array, "..."],
    kernel: int,
    stride: int,
    is_causal: bool,
) -> Bool[Array, "..."]:
    offset = stride - 1 if is_causal else stride // 2
    leader = i if stride == 1 else jnp.minimum(i // stride * stride + offset, size - 1)
    if is_causal:
        return (leader - j < kernel) & (j >= 0) & (j <= i)
    start = jnp.clip(leader - kernel // 2, 0, size - kernel)
    return (start <= j) & (j < start + kernel)


def _size(number: Any) -> int:
    return min(operator.index(number), LARGEST)


def _per_axis(name: str, value: Any, axes: tuple[str, ...], kind: Any) -> tuple[Any, ...]:
    several = isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1)
    values = tuple(value) if several else (value,) * len(axes)
    if len(values) != len(axes):
        raise ValueError(
            f"Neighborhood: {name} must have one number per axis, {len(axes)} for the axes {axes}, "
            f'got {len(values)}. Name the axes: axes=("positions",) for a sequence.'
        )
    try:
        return tuple(kind(x) for x in values)
    except TypeError:
        raise TypeError(
            f"Neighborhood: {name} must be a number or a tuple of numbers, got {value!r}."
        ) from None
