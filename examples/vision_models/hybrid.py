"""The common parts of MaxViT and CoAtNet: a stem, convolutions, and stages of any blocks.

This follows timm's "rw" models, which differ from the papers: the middle of a convolution is four
times as wide as the block's input, not its output, and its activation is SiLU, not GELU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.convert import Split, head_by_head
from vision_models.layers import BatchNorm, LayerNorm, check_images, conv, means

HEAD_DIM = 32


class Shortcut(nnx.Module):
    """Average pooling if the block has a stride, and a 1×1 convolution if the width changes."""

    def __init__(
        self, in_features: int, features: int, stride: int, *, use_bias: bool, rngs: nnx.Rngs
    ):
        if in_features != features:
            self.expand = conv(in_features, features, 1, use_bias=use_bias, rngs=rngs)
        else:
            self.expand = nnx.identity
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        return self.expand(means(x, self.stride))


class MBConv(nnx.Module):
    """A pre-normalised inverted residual, with δ = SiLU.

    u = norm1(conv1(pre_norm(x))),   v = norm2(conv2(δ(u))),   y = shortcut(x) + conv3(SE(δ(v)))

    Args:
      in_features: Channels of the map.
      features: Channels of the output.
      stride: 1 or 2.
      pooled: If True, the stride is that of an average pooling before conv1; if False, of conv2.
      reduction: Reduction of the squeeze-and-excitation.
      use_bias: If True, conv3 and the shortcut have biases.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        pooled: bool = False,
        reduction: int = 16,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        middle = 4 * in_features
        self.pool_stride, conv_stride = (stride, 1) if pooled else (1, stride)
        self.shortcut = Shortcut(in_features, features, stride, use_bias=use_bias, rngs=rngs)
        self.pre_norm = BatchNorm(in_features, rngs=rngs)
        self.conv1 = conv(in_features, middle, 1, rngs=rngs)
        self.norm1 = BatchNorm(middle, rngs=rngs)
        self.conv2 = conv(middle, middle, 3, conv_stride, groups=middle, rngs=rngs)
        self.norm2 = BatchNorm(middle, rngs=rngs)
        self.attention = flax_attn.nnx.SqueezeExcite(
            middle, reduction=reduction, use_bias=True, activation_fn=jax.nn.silu, rngs=rngs
        )
        self.conv3 = conv(middle, features, 1, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        y = self.conv1(means(self.pre_norm(x), self.pool_stride))
        y = self.conv2(jax.nn.silu(self.norm1(y)))
        y = self.attention(jax.nn.silu(self.norm2(y)))
        return self.shortcut(x) + self.conv3(y)


class Stem(nnx.Module):
    """Two 3×3 convolutions."""

    def __init__(self, widths: tuple[int, int], *, rngs: nnx.Rngs):
        self.conv1 = conv(3, widths[0], 3, 2, rngs=rngs)
        self.norm1 = BatchNorm(widths[0], rngs=rngs)
        self.conv2 = conv(*widths, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, 3]` to `[B, H / 2, W / 2, widths[1]]`."""
        return self.conv2(jax.nn.silu(self.norm1(self.conv1(x))))


class Stage(NamedTuple):
    """Blocks of one width. The first halves the feature map."""

    features: int
    depth: int
    block: Callable[..., nnx.Module]  # called as block(in_features, features, stride, rngs=rngs)


class Hybrid(nnx.Module):
    """A network of convolutions and transformers, from images `[B, H, W, 3]` to logits.

    Args:
      stem_widths: Channels of the two convolutions before the stages.
      stages: The stages.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        stem_widths: tuple[int, int],
        stages: Sequence[Stage],
        *,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        self.stem = Stem(stem_widths, rngs=rngs)
        self.stages = nnx.List()
        before = stem_widths[1]
        for stage in stages:
            blocks = nnx.List()
            for i in range(stage.depth):
                blocks.append(stage.block(before, stage.features, 1 if i else 2, rngs=rngs))
                before = stage.features
            self.stages.append(blocks)
        self.norm = LayerNorm(before, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(before, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        x = self.stem(x)
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            **{f"stages.{i}.blocks": f"stages.{i}" for i in range(len(self.stages))},
            "conv1_1x1": "conv1",
            "conv2_kxk": "conv2",
            "conv3_1x1": "conv3",
            "se.fc1": "attention.reduce",
            "se.fc2": "attention.expand",
            "attn_block": "within",
            "attn_grid": "across",
            "attn.rel_pos.relative_position_bias_table": "attention.relative_bias",
            "attn.proj": "attn.out",
            "attn": "attention",
            "head.fc": "head",
        }

    @property
    def timm_stacked(self) -> dict[str, Split]:
        """How to split layers that timm computes as one, by timm's name."""
        return {"qkv": head_by_head("query", "key", "value", head_dim=HEAD_DIM)}
