"""Residual networks of timm's with attention inside the bottleneck: BoTNet-26 and GCResNet-33.

Srinivas et al., "Bottleneck Transformers for Visual Recognition", CVPR 2021, arXiv:2101.11605:
self-attention over the whole map in place of 3×3 convolutions. Cao et al., "GCNet: Non-local
Networks Meet Squeeze-Excitation Networks and Beyond", ICCV Workshops 2019, arXiv:1904.11492: a
global context after them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.attention import ATTENTION, TIMM_NAMES, Attention
from vision_models.layers import BatchNorm, conv
from vision_models.resnet import Shortcut, no_attention


class PooledAttention(nnx.Module):
    """Bottleneck attention, and means of 2×2 places where the block has a stride of 2."""

    def __init__(self, features: int, size: int, stride: int, *, rngs: nnx.Rngs):
        self.attention = flax_attn.nnx.BottleneckAttention(
            features, (size, size), scale_positions=False, rngs=rngs
        )
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to `[B, H / stride, W / stride, C]`."""
        x = self.attention(x)
        batch, height, width, features = x.shape
        s = self.stride
        return jnp.mean(x.reshape(batch, height // s, s, width // s, s, features), axis=(2, 4))


class Block(nnx.Module):
    """A 3×3 convolution, or self-attention, between two 1×1 convolutions."""

    def __init__(
        self,
        in_features: int,
        features: int,
        size: int,
        stride: int,
        self_attention: bool,
        attention: Attention,
        activation_fn: Callable[[jax.Array], jax.Array],
        *,
        rngs: nnx.Rngs,
    ):
        width = features // 4
        self.conv1 = conv(in_features, width, 1, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        if self_attention:
            self.mixer = PooledAttention(width, size, stride, rngs=rngs)
        else:
            self.mixer = conv(width, width, 3, stride, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.attention = nnx.identity if self_attention else attention(width, rngs=rngs)
        self.conv3 = conv(width, features, 1, rngs=rngs)
        self.bn3 = BatchNorm(features, rngs=rngs)
        if stride > 1 or in_features != features:
            self.shortcut = Shortcut(in_features, features, stride, pooled=False, rngs=rngs)
        else:
            self.shortcut = nnx.identity
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        y = self.activation_fn(self.bn1(self.conv1(x)))
        y = self.activation_fn(self.bn2(self.mixer(y)))
        y = self.bn3(self.conv3(self.attention(y)))
        return self.activation_fn(self.shortcut(x) + y)


class Stage(NamedTuple):
    """Blocks of one width, of which the first has the stride; True is self-attention."""

    features: int
    stride: int
    self_attention: tuple[bool, ...]


class Stem(nnx.Module):
    """Three 3×3 convolutions."""

    def __init__(self, strides: Sequence[int], activation_fn: Callable, *, rngs: nnx.Rngs):
        widths = (3, 24, 32, 64)
        self.convs, self.norms = nnx.List(), nnx.List()
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            self.convs.append(conv(before, after, 3, stride, rngs=rngs))
            self.norms.append(BatchNorm(after, rngs=rngs))
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, 3]` to 64 channels."""
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = self.activation_fn(norm(layer(x)))
        return x


class BottleneckTransformer(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      stages: The blocks.
      attention: Makes the attention after a 3×3 convolution, called as
        `attention(features, rngs=rngs)`.
      activation_fn: After every norm but a block's last.
      pooled_stem: Whether the stem ends in maxima of 3×3 places, not in a stride.
      head_features: Width of a last 1×1 convolution, if there is one.
      image_size: H = W; self-attention is made for one size.
      num_classes: Number of logits.
      rngs: Keys for the parameters.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        attention: Attention = no_attention,
        activation_fn: Callable[[jax.Array], jax.Array] = nnx.relu,
        pooled_stem: bool = True,
        head_features: int | None = None,
        image_size: int = 256,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        strides = (2, 1, 1) if pooled_stem else (2, 1, 2)
        self.stem = Stem(strides, activation_fn, rngs=rngs)
        self.stages = nnx.List()
        features, size = 64, image_size // 4
        for stage in stages:
            blocks = nnx.List()
            for i, self_attention in enumerate(stage.self_attention):
                stride = stage.stride if i == 0 else 1
                block = Block(
                    features,
                    stage.features,
                    size,
                    stride,
                    self_attention,
                    attention,
                    activation_fn,
                    rngs=rngs,
                )
                blocks.append(block)
                features, size = stage.features, size // stride
            self.stages.append(blocks)
        self.widened = head_features is not None
        if self.widened:
            self.conv_head = conv(features, head_features, 1, rngs=rngs)
            self.bn_head = BatchNorm(head_features, rngs=rngs)
            features = head_features
        self.head = nnx.Linear(features, num_classes, rngs=rngs)
        self.activation_fn = activation_fn
        self.pooled_stem = pooled_stem

    def __call__(self, x: jax.Array) -> jax.Array:
        """Classify normalised images."""
        x = self.stem(x)
        if self.pooled_stem:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        if self.widened:
            x = self.activation_fn(self.bn_head(self.conv_head(x)))
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """Our paths of layers, by timm's."""
        inside = {name.replace("se.", "attn.", 1): path for name, path in TIMM_NAMES.items()}
        return {
            **{f"stem.conv{i + 1}.conv": f"stem.convs.{i}" for i in range(3)},
            **{f"stem.conv{i + 1}.bn": f"stem.norms.{i}" for i in range(3)},
            "shortcut.bn": "shortcut.norm",
            "conv1_1x1.conv": "conv1",
            "conv1_1x1.bn": "bn1",
            "conv2_kxk.conv": "mixer",
            "conv2_kxk.bn": "bn2",
            "self_attn.pos_embed.height_rel": "mixer.attention.relative_height",
            "self_attn.pos_embed.width_rel": "mixer.attention.relative_width",
            "self_attn": "mixer.attention",
            "post_attn": "bn2",
            "conv3_1x1.conv": "conv3",
            "conv3_1x1.bn": "bn3",
            "final_conv.conv": "conv_head",
            "final_conv.bn": "bn_head",
            "head.fc": "head",
            **inside,
        }


botnet26t = functools.partial(
    BottleneckTransformer,
    (
        Stage(256, 1, (False, False)),
        Stage(512, 2, (False, False)),
        Stage(1024, 2, (False, True)),
        Stage(2048, 2, (True, True)),
    ),
)
gcresnet33ts = functools.partial(
    BottleneckTransformer,
    (
        Stage(256, 1, (False, False)),
        Stage(512, 2, (False, False, False)),
        Stage(1536, 2, (False, False, False)),
        Stage(1536, 2, (False, False)),
    ),
    attention=ATTENTION["gca"],
    activation_fn=jax.nn.silu,
    pooled_stem=False,
    head_features=1280,
)
