"""Maps: weights bound to callables.

A *map* is any callable from array to array, such as a Linen layer, an NNX layer, an Equinox module
or a lambda. The functions here make maps from arrays. These maps are `jax.tree_util.Partial`s and
pass through `jit`, `grad` and `vmap` as arguments. Their arrays are the leaves. Their settings are
static and compare by value, so an equal map does not retrace.

Every map here computes in its input's dtype, accumulates in float32 (float64 for float64 input) and
returns its input's dtype, for weights of any dtype.

Letters: `B` batch, `H W` height and width, `L` length, `C` channels, `I O` input and output
features.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from flax_attn._checks import as_floating, as_integer, check_arrays, expand_rank, statistics_dtype
from flax_attn._cpu.convolution import convolve

__all__ = ["batch_norm", "conv", "conv1d", "dense", "depthwise_conv", "group_norm", "layer_norm"]


def __dir__() -> list[str]:
    return __all__


Padding = int | Sequence[int] | Sequence[tuple[int, int]] | None


def dense(
    kernel: Float[Array, "..."],
    bias: Float[Array, "*O"] | None = None,
    *,
    axes: int = 1,
    precision: lax.PrecisionLike = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Partial:
    """Bind a linear map: y = x · kernel + bias over the last `axes` axes of x.

    Args:
      kernel: Weights `[*I, *O]`. The first `axes` axes are contracted with the last axes of the
        input, as in Flax's `Dense` and `DenseGeneral`.
      bias: Added to the output, `[*O]`.
      axes: Number of contracted axes.
      precision: Precision of the dot product.
      axis_name: Name of a mesh axis, inside `shard_map` or `pmap`, over which the contracted axes
        are split. The partial products are summed over it before the bias is added.

    Returns:
      A map from `[..., *I]` to `[..., *O]`.

    Raises:
      ValueError: When called, if the input does not end in the kernel's input axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps
      >>> heads = maps.dense(jnp.ones((6, 2, 3)))     # like DenseGeneral(features=(2, 3))
      >>> heads(jnp.ones((4, 6))).shape
      (4, 2, 3)
      >>> join = maps.dense(jnp.ones((2, 3, 6)), axes=2)
      >>> join(heads(jnp.ones((4, 6)))).shape
      (4, 6)
    """
    if axes < 1:
        raise ValueError(f"dense: axes must be at least 1, got {axes}.")
    check_arrays("dense", kernel=kernel, bias=bias)
    return Partial(_Dense(axes, precision, axis_name), kernel, bias)


def conv(
    kernel: Float[Array, "kh kw I O"],
    bias: Float[Array, "O"] | None = None,
    *,
    strides: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding: Padding = None,
    precision: lax.PrecisionLike = None,
) -> Partial:
    """Bind a 2-D convolution (cross-correlation, as everywhere in deep learning).

    Args:
      kernel: Weights `[kh, kw, C // groups, O]`, as in Flax's `Conv`.
      bias: Added to the output, `[O]`.
      strides: Step of the window, one number or one per axis.
      dilation: Spacing of the kernel's taps, one number or one per axis.
      groups: Number of channel groups. Output group g reads input group g only.
      padding: Zeros on each side: one number, one per axis, or a `(before, after)` pair per axis.
        `None` pads `dilation · (k − 1) / 2` on both sides, which keeps the size at stride 1. This
        is symmetric at every stride, as in PyTorch. XLA's "SAME" is not symmetric at stride 2.
      precision: Precision of the products.

    Returns:
      A map from `[*B, H, W, C]` to `[*B, H', W', O]`.

    Raises:
      ValueError: If a setting is not positive, or when called: if the kernel has an even size and
        no padding is given, or the channels do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps
      >>> blur = maps.conv(jnp.full((3, 3, 1, 1), 1 / 9), strides=2)
      >>> blur(jnp.ones((2, 8, 8, 1))).shape
      (2, 4, 4, 1)
    """
    return _bind_conv("conv", 2, kernel, bias, strides, dilation, groups, padding, precision)


def depthwise_conv(
    kernel: Float[Array, "kh kw 1 O"],
    bias: Float[Array, "O"] | None = None,
    *,
    strides: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    padding: Padding = None,
    precision: lax.PrecisionLike = None,
) -> Partial:
    """Bind a depthwise 2-D convolution: each channel has its own kernel.

    Args:
      kernel: Weights `[kh, kw, 1, C]`, as in Flax's `Conv` with `feature_group_count=C`.
      bias: Added to the output, `[C]`.
      strides: As in `conv`.
      dilation: As in `conv`.
      padding: As in `conv`.
      precision: As in `conv`.

    Returns:
      A map from `[*B, H, W, C]` to `[*B, H', W', C]`.

    Raises:
      ValueError: As in `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps
      >>> maps.depthwise_conv(jnp.ones((3, 3, 1, 5)))(jnp.ones((2, 8, 8, 5))).shape
      (2, 8, 8, 5)
    """
    name, groups = "depthwise_conv", getattr(kernel, "shape", (1,))[-1]
    return _bind_conv(name, 2, kernel, bias, strides, dilation, groups, padding, precision)


def conv1d(
    kernel: Float[Array, "k I O"],
    bias: Float[Array, "O"] | None = None,
    *,
    strides: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding: Padding = None,
    precision: lax.PrecisionLike = None,
) -> Partial:
    """Bind a 1-D convolution.

    Args:
      kernel: Weights `[k, C // groups, O]`, as in Flax's `Conv`.
      bias: Added to the output, `[O]`.
      strides: As in `conv`.
      dilation: As in `conv`.
      groups: As in `conv`.
      padding: As in `conv`.
      precision: As in `conv`.

    Returns:
      A map from `[*B, L, C]` to `[*B, L', O]`.

    Raises:
      ValueError: As in `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps
      >>> maps.conv1d(jnp.ones((3, 1, 1)))(jnp.ones((2, 16, 1))).shape
      (2, 16, 1)
    """
    return _bind_conv("conv1d", 1, kernel, bias, strides, dilation, groups, padding, precision)


def batch_norm(
    mean: Float[Array, "C"],
    var: Float[Array, "C"],
    scale: Float[Array, "C"] | None = None,
    bias: Float[Array, "C"] | None = None,
    *,
    epsilon: float = 1e-5,
) -> Partial:
    """Bind batch normalisation with given statistics, as in inference.

    y = (x − mean) / √(var + ε) · scale + bias

    Args:
      mean: Running mean, `[C]`.
      var: Running variance, `[C]`.
      scale: Gain, `[C]`.
      bias: Offset, `[C]`.
      epsilon: ε, added to the variance.

    Returns:
      A map from `[..., C]` to `[..., C]`.

    Raises:
      ValueError: When called, if the input's last axis is not the parameters' `C`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps
      >>> norm = maps.batch_norm(jnp.array([1.0]), jnp.array([4.0]), epsilon=0.0)
      >>> float(norm(jnp.array([5.0]))[0])
      2.0
    """
    return Partial(_BatchNorm(epsilon), mean, var, scale, bias)


def layer_norm(
    scale: Float[Array, "C"] | None = None,
    bias: Float[Array, "C"] | None = None,
    *,
    epsilon: float = 1e-5,
) -> Partial:
    """Bind layer normalisation over the last axis.

    y = (x − mean x) / √(var x + ε) · scale + bias

    Args:
      scale: Gain, `[C]`.
      bias: Offset, `[C]`.
      epsilon: ε, added to the variance. The default is PyTorch's; Flax's is 1e-6.

    Returns:
      A map from `[..., C]` to `[..., C]`.

    Raises:
      ValueError: When called, if the input's last axis is not the parameters' `C`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps
      >>> maps.layer_norm(epsilon=0.0)(jnp.array([1.0, 3.0]))
      Array([-1.,  1.], dtype=float32)
    """
    return Partial(_LayerNorm(epsilon), scale, bias)


def group_norm(
    scale: Float[Array, "C"] | None = None,
    bias: Float[Array, "C"] | None = None,
    *,
    num_groups: int,
    spatial_axes: int = 2,
    epsilon: float = 1e-5,
) -> Partial:
    """Bind group normalisation: statistics over space and the channels of a group.

    Args:
      scale: Gain, `[C]`.
      bias: Offset, `[C]`.
      num_groups: Number of groups of consecutive channels.
      spatial_axes: Number of axes of one sample before the channels: 2 for `[*B, H, W, C]`, 1 for
        `[*B, L, C]`.
      epsilon: ε, added to the variance. The default is PyTorch's; Flax's is 1e-6.

    Returns:
      A map from `[*B, *space, C]` to the same shape.

    Raises:
      ValueError: When called, if `C` is not a multiple of `num_groups` or not the parameters' `C`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import maps
      >>> maps.group_norm(num_groups=2)(jnp.ones((3, 4, 4, 6))).shape
      (3, 4, 4, 6)
    """
    if num_groups < 1:
        raise ValueError(f"group_norm: num_groups must be at least 1, got {num_groups}.")
    return Partial(_GroupNorm(num_groups, spatial_axes, epsilon), scale, bias)


@dataclasses.dataclass(frozen=True)
class _Dense:
    axes: int
    precision: lax.PrecisionLike
    axis_name: str | tuple[str, ...] | None

    def __call__(self, kernel: Array, bias: Array | None, x: Array) -> Array:
        x = as_floating("dense", "x", x)
        if x.ndim < self.axes or x.shape[x.ndim - self.axes :] != kernel.shape[: self.axes]:
            raise ValueError(
                f"dense: the input must end in the kernel's input axes "
                f"{list(kernel.shape[: self.axes])}, got {list(x.shape)}. A kernel is "
                f"[*inputs, *outputs]; transpose a PyTorch weight."
            )
        _check_bias("dense", bias, kernel.shape[self.axes :])
        contracted = tuple(range(x.ndim - self.axes, x.ndim)), tuple(range(self.axes))
        y = lax.dot_general(
            x,
            kernel.astype(x.dtype),
            (contracted, ((), ())),
            precision=self.precision,
            preferred_element_type=statistics_dtype(x.dtype),
        )
        if self.axis_name is not None:
            y = lax.psum(y, self.axis_name)
        return _add_bias(y, bias).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _Conv:
    name: str
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: tuple[tuple[int, int], ...] | None
    precision: lax.PrecisionLike

    def __call__(self, kernel: Array, bias: Array | None, x: Array) -> Array:
        x = as_floating(self.name, "x", x)
        rank = len(self.strides)
        if kernel.ndim != rank + 2:
            raise ValueError(
                f"{self.name}: kernel must have {rank + 2} axes: {rank} spatial axes, input and "
                f"output channels, got {list(kernel.shape)}."
            )
        if x.ndim < rank + 1 or x.shape[-1] != kernel.shape[-2] * self.groups:
            raise ValueError(
                f"{self.name}: the input must be [*B, {rank} spatial axes, C] with C = kernel "
                f"inputs · groups = {kernel.shape[-2]} · {self.groups}, got {list(x.shape)}."
            )
        if kernel.shape[-1] % self.groups:
            raise ValueError(
                f"{self.name}: output channels must be a multiple of groups = {self.groups}, "
                f"got {kernel.shape[-1]}."
            )
        _check_bias(self.name, bias, kernel.shape[-1:])
        batch, space = x.shape[: -rank - 1], "HW"[-rank:]
        y = convolve(
            x.reshape(-1, *x.shape[-rank - 1 :]),
            kernel.astype(x.dtype),
            self.strides,
            self._padding(kernel.shape[:rank]),
            rhs_dilation=self.dilation,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
            feature_group_count=self.groups,
            precision=self.precision,
            preferred_element_type=statistics_dtype(x.dtype),
        )
        return _add_bias(y.reshape(*batch, *y.shape[1:]), bias).astype(x.dtype)

    def _padding(self, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        if self.padding is not None:
            return self.padding
        if any(size % 2 == 0 for size in sizes):
            raise ValueError(
                f"{self.name}: an even kernel {list(sizes)} has no centre. "
                f"Give the padding: padding=[(before, after), ...]."
            )
        reach = (d * (size - 1) // 2 for d, size in zip(self.dilation, sizes, strict=True))
        return tuple((r, r) for r in reach)


@dataclasses.dataclass(frozen=True)
class _BatchNorm:
    epsilon: float

    def __call__(
        self, mean: Array, var: Array, scale: Array | None, bias: Array | None, x: Array
    ) -> Array:
        x = _check_norm("batch_norm", x, mean, var, scale, bias)
        dtype = statistics_dtype(x.dtype)
        mean, var = (expand_rank(a.astype(dtype), x.ndim) for a in (mean, var))
        y = (x.astype(dtype) - mean) * lax.rsqrt(var + self.epsilon)
        return _affine(y, scale, bias).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _LayerNorm:
    epsilon: float

    def __call__(self, scale: Array | None, bias: Array | None, x: Array) -> Array:
        x = _check_norm("layer_norm", x, scale, bias)
        y = _standardize(x.astype(statistics_dtype(x.dtype)), (-1,), self.epsilon)
        return _affine(y, scale, bias).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _GroupNorm:
    num_groups: int
    spatial_axes: int
    epsilon: float

    def __call__(self, scale: Array | None, bias: Array | None, x: Array) -> Array:
        x = _check_norm("group_norm", x, scale, bias)
        if x.ndim <= self.spatial_axes:
            raise ValueError(
                f"group_norm: the input must be [*B, {self.spatial_axes} spatial axes, C], "
                f"got {list(x.shape)}. Set spatial_axes to the axes that belong to one sample."
            )
        if x.shape[-1] % self.num_groups:
            raise ValueError(
                f"group_norm: channels must be a multiple of num_groups = {self.num_groups}, "
                f"got C = {x.shape[-1]}."
            )
        grouped = x.astype(statistics_dtype(x.dtype)).reshape(
            *x.shape[:-1], self.num_groups, x.shape[-1] // self.num_groups
        )
        space = tuple(range(-2 - self.spatial_axes, -2))
        y = _standardize(grouped, (*space, -1), self.epsilon).reshape(x.shape)
        return _affine(y, scale, bias).astype(x.dtype)


def _bind_conv(
    name: str,
    rank: int,
    kernel: Array,
    bias: Array | None,
    strides: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    padding: Padding,
    precision: lax.PrecisionLike,
) -> Partial:
    strides = _per_axis(name, "strides", strides, rank, least=1)
    dilation = _per_axis(name, "dilation", dilation, rank, least=1)
    if groups < 1:
        raise ValueError(f"{name}: groups must be at least 1, got {groups}.")
    pairs = None if padding is None else _padding_pairs(name, padding, rank)
    check_arrays(name, kernel=kernel, bias=bias)
    return Partial(_Conv(name, strides, dilation, groups, pairs, precision), kernel, bias)


def _per_axis(
    name: str, argument: str, value: int | Sequence[int], rank: int, *, least: int
) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    numbers = tuple(as_integer(name, argument, v) for v in values)
    if len(numbers) != rank or min(numbers) < least:
        raise ValueError(
            f"{name}: {argument} must be one number or {rank}, at least {least}, got {value}."
        )
    return numbers


def _padding_pairs(name: str, padding: Padding, rank: int) -> tuple[tuple[int, int], ...]:
    sides: tuple[int | tuple[int, int], ...]
    sides = (padding,) * rank if isinstance(padding, int) else tuple(padding or ())
    pairs = tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)
    if len(pairs) != rank or any(len(p) != 2 or min(p) < 0 for p in pairs):
        raise ValueError(
            f"{name}: padding must be None, a number, {rank} numbers or {rank} (before, after) "
            f"pairs, none negative, got {padding}."
        )
    return tuple((before, after) for before, after in pairs)


def _check_bias(name: str, bias: Array | None, shape: tuple[int, ...]) -> None:
    if bias is not None and bias.shape != shape:
        raise ValueError(
            f"{name}: bias must have the kernel's output axes {list(shape)}, "
            f"got {list(bias.shape)}."
        )


def _add_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + expand_rank(bias.astype(y.dtype), y.ndim)


def _affine(y: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        y = y * expand_rank(scale.astype(y.dtype), y.ndim)
    return _add_bias(y, bias)


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    # Two passes: E[x²] − E[x]² cancels if the mean is much larger than the deviation.
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=axes, keepdims=True) + epsilon)


def _check_norm(name: str, x: jax.Array, *parameters: Array | None) -> jax.Array:
    x = as_floating(name, "x", x)
    for parameter in parameters:
        check_arrays(name, parameters=parameter)
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: parameters must be [C] = [{x.shape[-1]}] for an input of shape "
                f"{list(x.shape)}, got {list(parameter.shape)}."
            )
    return x
