"""timm's residual networks with attention or self-attention inside the bottleneck.

Srinivas et al., "Bottleneck Transformers for Visual Recognition", CVPR 2021, arXiv:2101.11605. Some
blocks have self-attention in place of the 3×3 convolution. `botnet.py`, `gcresnet.py`, `halonet.py`
and `lambda_resnet.py` use this network.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vision_models.attention import Attention, timm_attention_names
from vision_models.layers import BatchNorm, ConvStem, check_images, conv, means
from vision_models.resnet import Shortcut, no_attention


class Pooled(nnx.Module):
    """Self-attention, followed by average pooling if the block has a stride."""

    def __init__(self, attention: nnx.Module, stride: int):
        self.attention = attention
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to `[B, H / stride, W / stride, C]`."""
        return means(self.attention(x), self.stride)


class Block(nnx.Module):
    """A 3×3 convolution or self-attention between two 1×1 convolutions."""

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        mixer: nnx.Module,
        attention: nnx.Module,
        activation_fn: Callable[[jax.Array], jax.Array],
        *,
        rngs: nnx.Rngs,
    ):
        width = features // 4
        self.conv1 = conv(in_features, width, 1, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.mixer = mixer
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.attention = attention
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
    """Blocks of one width; the first has the stride. True is a block with self-attention."""

    features: int
    stride: int
    self_attention: tuple[bool, ...]


class BottleneckResNet(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      stages: The stages.
      self_attention: Makes the self-attention of a block, called as
        `self_attention(features, stride, reduction, rngs=rngs)`, where the feature map is
        `reduction` times smaller than the image. Returns a module with an attribute `attention`.
      attention: Makes the attention after a 3×3 convolution, called as
        `attention(features, rngs=rngs)`.
      activation_fn: Activation after every norm, except for the last of a block.
      pooled_stem: If True, the stem ends in a 3×3 max pooling; if False, in a stride.
      head_features: Width of a last 1×1 convolution; None for no such convolution.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        self_attention: Callable[..., nnx.Module] | None = None,
        attention: Attention = no_attention,
        activation_fn: Callable[[jax.Array], jax.Array] = nnx.relu,
        pooled_stem: bool = True,
        head_features: int | None = None,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        strides = (2, 1, 1) if pooled_stem else (2, 1, 2)
        self.stem = ConvStem((3, 24, 32, 64), (3, 3, 3), strides, activation_fn, rngs=rngs)
        self.stages = nnx.List()
        before, reduction = 64, 4
        for features, first_stride, kinds in stages:
            blocks, width = nnx.List(), features // 4
            for i, attends in enumerate(kinds):
                stride = 1 if i else first_stride
                if attends:
                    mixer = self_attention(width, stride, reduction, rngs=rngs)
                    after = nnx.identity
                else:
                    mixer = conv(width, width, 3, stride, rngs=rngs)
                    after = attention(width, rngs=rngs)
                blocks.append(
                    Block(before, features, stride, mixer, after, activation_fn, rngs=rngs)
                )
                before, reduction = features, stride * reduction
            self.stages.append(blocks)
        self.widened = head_features is not None
        if self.widened:
            self.conv_head = conv(before, head_features, 1, rngs=rngs)
            self.bn_head = BatchNorm(head_features, rngs=rngs)
            before = head_features
        self.head = nnx.Linear(before, num_classes, rngs=rngs)
        self.activation_fn = activation_fn
        self.pooled_stem = pooled_stem

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        x = self.activation_fn(self.stem(x))
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
        """The paths of our layers, by timm's names."""
        names = timm_attention_names(self)
        inside = {name.replace("se.", "attn.", 1): path for name, path in names.items()}
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


# Self-attention in the last block of the third stage and in all of the fourth.
STAGES_26T = (
    Stage(256, 1, (False, False)),
    Stage(512, 2, (False, False)),
    Stage(1024, 2, (False, True)),
    Stage(2048, 2, (True, True)),
)
