"""ResNeSt: a residual network with split attention in place of the 3×3 convolutions.

Zhang et al., "ResNeSt: Split-Attention Networks", CVPR Workshops 2022, arXiv:2004.08955. It is
based on ResNet-D, and average pooling replaces the stride of the convolution at the beginning of a
stage.
"""

import functools
from collections.abc import Callable

import jax
from flax import nnx

import flax_attn.nnx
from vision_models.attention import Attention
from vision_models.layers import BatchNorm, conv
from vision_models.resnet import ResNet


class SplitAttentionBlock(nnx.Module):
    """A bottleneck with split attention in the middle."""

    expansion = 4

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        shortcut: Callable,
        attention: Attention,
        *,
        rngs: nnx.Rngs,
    ):
        features = self.expansion * width
        self.conv1 = conv(in_features, width, 1, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = flax_attn.nnx.SplitAttention(width, rngs=rngs)
        self.conv3 = conv(width, features, 1, rngs=rngs)
        self.bn3 = BatchNorm(features, rngs=rngs)
        self.attention = attention(features, rngs=rngs)
        self.shortcut = shortcut
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, 4 · width]`."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.conv2(y)
        y = mean_3x3(y, self.stride) if self.stride > 1 else y
        y = self.bn3(self.conv3(y))
        return nnx.relu(self.shortcut(x) + self.attention(y))


def mean_3x3(x: jax.Array, stride: int) -> jax.Array:
    """Average pooling of 3×3 places of `[B, H, W, C]`, which counts the padding of zeros."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, stride, stride, 1), padding)
    return sums / 9


class ResNeSt(ResNet):
    """A `ResNet` with this block."""

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            **super().timm_names,
            "conv2.bn0": "conv2.conv_norm",
            "conv2.fc1": "conv2.reduce",
            "conv2.bn1": "conv2.reduce_norm",
            "conv2.fc2": "conv2.expand",
        }


resnest14d = functools.partial(ResNeSt, SplitAttentionBlock, (1, 1, 1, 1), stem_widths=(32, 32))
