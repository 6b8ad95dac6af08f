"""Residual networks with any attention in their blocks.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
A block is y = ReLU(shortcut(x) + attention(f(x))), where f is two or three convolutions with norms.
Attention comes after the last norm and before the sum, as in SE-ResNet.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vision_models.attention import ATTENTION, Attention, timm_attention_names
from vision_models.layers import BatchNorm, check_images, conv


def no_attention(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """The identity, for a network without attention."""
    return nnx.identity


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions."""

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
        self.conv1 = conv(in_features, width, 3, stride, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.attention = attention(width, rngs=rngs)
        self.shortcut = shortcut

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, width]`."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(self.shortcut(x) + self.attention(y))


class Bottleneck(nnx.Module):
    """A 3×3 convolution between two 1×1 convolutions, the last of which is four times as wide."""

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
        self.conv2 = conv(width, width, 3, stride, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = conv(width, features, 1, rngs=rngs)
        self.bn3 = BatchNorm(features, rngs=rngs)
        self.attention = attention(features, rngs=rngs)
        self.shortcut = shortcut

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, 4 · width]`."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(self.shortcut(x) + self.attention(y))


class Shortcut(nnx.Module):
    """A 1×1 convolution for a block that changes the shape; ResNet-D pools before it."""

    def __init__(
        self, in_features: int, features: int, stride: int, *, pooled: bool, rngs: nnx.Rngs
    ):
        self.pool = stride if pooled else 1
        self.conv = conv(in_features, features, 1, stride // self.pool, rngs=rngs)
        self.norm = BatchNorm(features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        if self.pool > 1:
            window = (self.pool, self.pool)
            padding = [(0, -size % self.pool) for size in x.shape[1:3]]
            x = nnx.avg_pool(x, window, window, padding, count_include_pad=False)
        return self.norm(self.conv(x))


class DeepStem(nnx.Module):
    """The stem of ResNet-D: three 3×3 convolutions. The norm of the last is outside."""

    def __init__(self, widths: tuple[int, int], features: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(3, widths[0], 3, 2, rngs=rngs)
        self.bn1 = BatchNorm(widths[0], rngs=rngs)
        self.conv2 = conv(widths[0], widths[1], 3, rngs=rngs)
        self.bn2 = BatchNorm(widths[1], rngs=rngs)
        self.conv3 = conv(widths[1], features, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, 3]` to `[B, H / 2, W / 2, features]`."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return self.conv3(x)


class ResNet(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      block: `BasicBlock`, `Bottleneck`, or a class with the same arguments.
      depths: Number of blocks of each stage.
      attention: Makes the attention of a block, called as `attention(features, rngs=rngs)`.
      stem_widths: None for one 7×7 convolution; two widths for ResNet-D, He et al., "Bag of Tricks
        for Image Classification", CVPR 2019, arXiv:1812.01187.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        block: type,
        depths: Sequence[int],
        *,
        attention: Attention = no_attention,
        stem_widths: tuple[int, int] | None = None,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        self.version_d = stem_widths is not None
        width = 64
        if self.version_d:
            self.conv1 = DeepStem(stem_widths, width, rngs=rngs)
        else:
            self.conv1 = conv(3, width, 7, 2, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.stages = nnx.List()
        features = width
        for i, depth in enumerate(depths):
            width = 64 * 2**i
            blocks = nnx.List()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                before, features = features, block.expansion * width
                shortcut = nnx.identity
                if stride > 1 or before != features:
                    shortcut = Shortcut(before, features, stride, pooled=self.version_d, rngs=rngs)
                blocks.append(block(before, width, stride, shortcut, attention, rngs=rngs))
            self.stages.append(blocks)
        self.fc = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        stem = ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3")
        shortcut = ("pool", "conv", "norm") if self.version_d else ("conv", "norm")
        return {
            **{f"layer{i}": f"stages.{i - 1}" for i in range(1, len(self.stages) + 1)},
            **{f"conv1.{i}": f"conv1.{name}" for i, name in enumerate(stem)},
            **{f"downsample.{i}": f"shortcut.{name}" for i, name in enumerate(shortcut)},
            **timm_attention_names(self),
        }


resnet18 = functools.partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet50 = functools.partial(ResNet, Bottleneck, (3, 4, 6, 3))
seresnet18 = functools.partial(resnet18, attention=ATTENTION["se"])
seresnet50 = functools.partial(resnet50, attention=ATTENTION["se"])
ecaresnet26t = functools.partial(
    ResNet,
    Bottleneck,
    (2, 2, 2, 2),
    attention=ATTENTION["eca"],
    stem_widths=(24, 32),
)
