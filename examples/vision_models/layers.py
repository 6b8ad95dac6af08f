"""Layers of several models, with the conventions of PyTorch where Flax differs."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

# PyTorch's momentum of 0.1 is the weight of the new statistics, Flax's 0.9 that of the old ones.
# In training, Flax averages biased variances and PyTorch unbiased ones.
# Flax's fast variance, E[x²] − E[x]², is inaccurate if the mean is large.
BatchNorm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
LayerNorm = functools.partial(nnx.LayerNorm, use_fast_variance=False)


def conv(
    in_features: int,
    features: int,
    size: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution with equal padding on all sides, as in PyTorch.

    "SAME" with stride 2 pads images of even size on the right and at the bottom only.
    """
    padding = dilation * (size - 1) // 2
    return nnx.Conv(
        in_features,
        features,
        (size, size),
        strides=stride,
        padding=[(padding, padding)] * 2,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


class ConvStem(nnx.Module):
    """Square convolutions, each with its norm, and an activation between them.

    Args:
      widths: Channels of the image and of each convolution.
      sizes: Kernel size of each convolution.
      strides: Stride of each convolution.
      activation_fn: Activation between the convolutions.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        widths: Sequence[int],
        sizes: Sequence[int],
        strides: Sequence[int],
        activation_fn: Callable[[jax.Array], jax.Array],
        *,
        rngs: nnx.Rngs,
    ):
        self.convs, self.norms = nnx.List(), nnx.List()
        layers = zip(widths[:-1], widths[1:], sizes, strides, strict=True)
        for before, after, size, stride in layers:
            self.convs.append(conv(before, after, size, stride, rngs=rngs))
            self.norms.append(BatchNorm(after, rngs=rngs))
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, widths[0]]` to a map of `widths[-1]` channels, without an activation."""
        for i, (layer, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(layer(self.activation_fn(x) if i else x))
        return x


class LayerScale(nnx.Module):
    """y = γ · x, with a factor γ per channel."""

    def __init__(self, features: int):
        self.gamma = nnx.Param(jnp.ones(features))

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[*B, features]` to the same."""
        return x * self.gamma[...].reshape((1,) * (x.ndim - 1) + (-1,))


def means(x: jax.Array, stride: int) -> jax.Array:
    """Average pooling of s×s places: from `[B, H, W, C]` to `[B, H / s, W / s, C]`."""
    batch, height, width, features = x.shape
    s = stride
    if height % s or width % s:
        raise ValueError(
            f"means: the sides of a map must be even, as the model halves it, got "
            f"{height} · {width}. Resize the images."
        )
    return jnp.mean(x.reshape(batch, height // s, s, width // s, s, features), axis=(2, 4))


def check_images(model: nnx.Module, x: jax.Array) -> None:
    """Raise unless x is `[B, H, W, 3]`."""
    if x.ndim != 4 or x.shape[-1] != 3:
        if x.shape[-3:-2] == (3,):
            fix = "Transpose PyTorch's [B, 3, H, W]: jnp.moveaxis(x, -3, -1)."
        else:
            fix = "Give one image a batch axis, x[None], and a grey one three channels."
        raise ValueError(
            f"{type(model).__name__}: images must be [B, H, W, 3], got {list(x.shape)}. {fix}"
        )


def check_image_size(model: nnx.Module, x: jax.Array, image_size: int) -> None:
    """Raise unless the images have the size that the model was built for."""
    check_images(model, x)
    if x.shape[1:3] != (image_size, image_size):
        raise ValueError(
            f"{type(model).__name__}: images must be [B, H, W, 3] with H = W = image_size = "
            f"{image_size}, got {list(x.shape)}. Build the model with another image_size."
        )


def check_multiple(model: str, image_size: int, divisor: int) -> None:
    """Raise unless the size of the images is a multiple of `divisor`."""
    if image_size <= 0 or image_size % divisor:
        raise ValueError(
            f"{model}: image_size must be a multiple of {divisor}, got {image_size}. Resize the "
            f"images."
        )


def divisible(width: float, divisor: int = 8, least: float = 0.0) -> int:
    """The multiple of `divisor` nearest to `width`, at least one; the next one if below `least`."""
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest if nearest >= least * width else nearest + divisor
