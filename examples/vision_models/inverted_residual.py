"""The blocks of EfficientNet and MobileNetV3, with attention in the expanded middle.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv:1801.04381. A block expands the channels by a 1×1 convolution, applies a depthwise convolution
and a gate, and reduces the channels again without an activation.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from flax import nnx

from vision_models.layers import BatchNorm, conv, divisible


class Blocks(NamedTuple):
    """A row of the tables in the papers: a sequence of equal blocks."""

    depth: int
    kernel_size: int
    stride: int  # of the first block
    expansion: float  # of the middle; 1 for no convolution before the depthwise one
    features: int
    attention: Callable[..., nnx.Module] | None  # called as attention(middle, before, rngs=rngs)
    activation_fn: Callable[[jax.Array], jax.Array]


class DepthwiseSeparable(nnx.Module):
    """y = norm(pw(attention(δ(norm(dw(x)))))), plus x if the shape does not change."""

    def __init__(self, in_features: int, row: Blocks, stride: int, *, rngs: nnx.Rngs):
        size = row.kernel_size
        self.conv_dw = conv(in_features, in_features, size, stride, groups=in_features, rngs=rngs)
        self.bn1 = BatchNorm(in_features, rngs=rngs)
        self.attention = make_attention(row, in_features, in_features, rngs)
        self.conv_pw = conv(in_features, row.features, 1, rngs=rngs)
        self.bn2 = BatchNorm(row.features, rngs=rngs)
        self.activation_fn = row.activation_fn
        self.residual = stride == 1 and in_features == row.features

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        y = self.activation_fn(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(self.attention(y)))
        return x + y if self.residual else y


class InvertedResidual(nnx.Module):
    """y = norm(pwl(attention(δ(norm(dw(δ(norm(pw(x)))))))), plus x if the shape does not change."""

    def __init__(self, in_features: int, row: Blocks, stride: int, *, rngs: nnx.Rngs):
        size, middle = row.kernel_size, divisible(in_features * row.expansion, least=0.9)
        self.conv_pw = conv(in_features, middle, 1, rngs=rngs)
        self.bn1 = BatchNorm(middle, rngs=rngs)
        self.conv_dw = conv(middle, middle, size, stride, groups=middle, rngs=rngs)
        self.bn2 = BatchNorm(middle, rngs=rngs)
        self.attention = make_attention(row, middle, in_features, rngs)
        self.conv_pwl = conv(middle, row.features, 1, rngs=rngs)
        self.bn3 = BatchNorm(row.features, rngs=rngs)
        self.activation_fn = row.activation_fn
        self.residual = stride == 1 and in_features == row.features

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        y = self.activation_fn(self.bn1(self.conv_pw(x)))
        y = self.activation_fn(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(self.attention(y)))
        return x + y if self.residual else y


def make_attention(row: Blocks, features: int, in_features: int, rngs: nnx.Rngs) -> Callable:
    """The attention of a block; the identity if its row has none."""
    return row.attention(features, in_features, rngs=rngs) if row.attention else nnx.identity


def make_stages(
    in_features: int, stages: Sequence[Sequence[Blocks]], *, rngs: nnx.Rngs
) -> nnx.List:
    """A list of the blocks of each stage."""
    made = nnx.List()
    for rows in stages:
        blocks = nnx.List()
        for row in rows:
            block = DepthwiseSeparable if row.expansion == 1 else InvertedResidual
            for i in range(row.depth):
                blocks.append(block(in_features, row, row.stride if i == 0 else 1, rngs=rngs))
                in_features = row.features
        made.append(blocks)
    return made
