"""SKNet: a residual network with selective kernels.

Li et al., "Selective Kernel Networks", CVPR 2019, arXiv:1903.06586. This is timm's version, where
each of the two kernels convolves one half of the channels, without groups. The mechanism is a
function of maps, so it takes maps that read one half.
"""

import functools
from collections.abc import Callable

import jax
from flax import nnx

from flax_attn import vision
from vision_models.attention import Attention
from vision_models.layers import BatchNorm, conv, divisible
from vision_models.resnet import ResNet


class HalvesSelectiveKernel(nnx.Module):
    """`flax_attn.vision.selective_kernel`: a 3×3 and a dilated 3×3 kernel, each on half of x."""

    def __init__(self, in_features: int, features: int, stride: int, *, rngs: nnx.Rngs):
        half, hidden = in_features // 2, divisible(features / 8, 16, least=0.9)
        self.conv_0 = conv(half, features, 3, stride, rngs=rngs)
        self.conv_norm_0 = BatchNorm(features, rngs=rngs)
        self.conv_1 = conv(half, features, 3, stride, dilation=2, rngs=rngs)
        self.conv_norm_1 = BatchNorm(features, rngs=rngs)
        self.reduce = nnx.Linear(features, hidden, use_bias=False, rngs=rngs)
        self.reduce_norm = BatchNorm(hidden, rngs=rngs)
        self.select = nnx.Linear(hidden, 2 * features, use_bias=False, rngs=rngs)
        self.half = half

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        return vision.selective_kernel(
            x,
            [
                lambda x: self.conv_0(x[..., : self.half]),
                lambda x: self.conv_1(x[..., self.half :]),
            ],
            [self.conv_norm_0, self.conv_norm_1],
            self.reduce,
            self.reduce_norm,
            self.select,
        )


class SelectiveKernelBlock(nnx.Module):
    """The basic block with a selective kernel in place of its first convolution."""

    expansion = 1

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
        self.conv1 = HalvesSelectiveKernel(in_features, width, stride, rngs=rngs)
        self.conv2 = conv(width, width, 3, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.attention = attention(width, rngs=rngs)
        self.shortcut = shortcut

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, width]`."""
        y = self.bn2(self.conv2(self.conv1(x)))
        return nnx.relu(self.shortcut(x) + self.attention(y))


class SKNet(ResNet):
    """A `ResNet` with this block."""

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            **super().timm_names,
            **{f"conv1.paths.{i}.conv": f"conv1.conv_{i}" for i in range(2)},
            **{f"conv1.paths.{i}.bn": f"conv1.conv_norm_{i}" for i in range(2)},
            "conv1.attn.fc_reduce": "conv1.reduce",
            "conv1.attn.bn": "conv1.reduce_norm",
            "conv1.attn.fc_select": "conv1.select",
            "conv2.conv": "conv2",
            "conv2.bn": "bn2",
        }


skresnet18 = functools.partial(SKNet, SelectiveKernelBlock, (2, 2, 2, 2))
