"""MobileViTv2.

Mehta and Rastegari, "Separable Self-attention for Mobile Vision Transformers", TMLR 2023,
arXiv:2206.02680. Inverted residuals, followed from the third stage on by transformers. The feature
map is cut into patches of 2×2 places, and places with the same position in their patches attend to
each other.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_attn.nnx
from vision_models.convert import Split
from vision_models.inverted_residual import Blocks, make_stages
from vision_models.layers import BatchNorm, check_images, conv
from vision_models.transformer import Block, Mlp

# Statistics over the whole image; those of LayerNorm are over one place.
GroupNorm = functools.partial(nnx.GroupNorm, num_groups=1, use_fast_variance=False)
EPSILON = 1e-5

DEPTHS_AND_STRIDES = ((1, 1), (2, 2), (1, 2), (1, 2), (1, 2))  # of the inverted residuals


class MobileViTBlock(nnx.Module):
    """A depthwise convolution, then transformer blocks of half the width."""

    def __init__(self, features: int, depth: int, *, rngs: nnx.Rngs):
        width = features // 2
        self.conv_dw = conv(features, features, 3, groups=features, rngs=rngs)
        self.bn1 = BatchNorm(features, rngs=rngs)
        self.conv_in = conv(features, width, 1, rngs=rngs)
        self.blocks = nnx.List()
        for _ in range(depth):
            attention = flax_attn.nnx.SeparableAttention(width, patch_size=2, rngs=rngs)
            mlp = Mlp(width, 2 * width, activation_fn=jax.nn.silu, rngs=rngs)
            self.blocks.append(
                Block(width, attention, mlp, norm=GroupNorm, epsilon=EPSILON, rngs=rngs)
            )
        self.norm = GroupNorm(width, epsilon=EPSILON, rngs=rngs)
        self.conv_out = conv(width, features, 1, rngs=rngs)
        self.bn2 = BatchNorm(features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, features]` to the same; H and W are even."""
        x = self.conv_in(jax.nn.silu(self.bn1(self.conv_dw(x))))
        for block in self.blocks:
            x = block(x)
        return self.bn2(self.conv_out(self.norm(x)))


class MobileViTV2(nnx.Module):
    """From images `[B, H, W, 3]` to logits; H and W are multiples of 64.

    Args:
      width_multiplier: Factor of all widths; 1 gives 512 channels in the last stage.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(self, width_multiplier: float = 1.0, *, num_classes: int = 1000, rngs: nnx.Rngs):
        stem, *widths = (int(width_multiplier * c) for c in (32, 64, 128, 256, 384, 512))
        rows = [
            (Blocks(depth, 3, stride, 2, features, None, jax.nn.silu),)
            for (depth, stride), features in zip(DEPTHS_AND_STRIDES, widths, strict=True)
        ]
        self.conv_stem = conv(3, stem, 3, 2, rngs=rngs)
        self.bn_stem = BatchNorm(stem, rngs=rngs)
        self.stages = make_stages(stem, rows, rngs=rngs)
        for blocks, features, depth in zip(self.stages[2:], widths[2:], (2, 4, 3), strict=True):
            blocks.append(MobileViTBlock(features, depth, rngs=rngs))
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        x = jax.nn.silu(self.bn_stem(self.conv_stem(x)))
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            "stem.conv": "conv_stem",
            "stem.bn": "bn_stem",
            "conv1_1x1.conv": "conv_pw",
            "conv1_1x1.bn": "bn1",
            "conv2_kxk.conv": "conv_dw",
            "conv2_kxk.bn": "bn2",
            "conv3_1x1.conv": "conv_pwl",
            "conv3_1x1.bn": "bn3",
            "conv_kxk.conv": "conv_dw",
            "conv_kxk.bn": "bn1",
            "conv_1x1": "conv_in",
            "transformer": "blocks",
            "attn.out_proj": "attention.out",
            "attn": "attention",
            "conv_proj.conv": "conv_out",
            "conv_proj.bn": "bn2",
            "head.fc": "head",
        }

    @property
    def timm_stacked(self) -> dict[str, Split]:
        """How to split layers that timm computes as one, by timm's name."""

        def split(weight: np.ndarray) -> Mapping[str, np.ndarray]:
            key, value = np.split(weight[1:], 2)
            return {"score": weight[:1], "key": key, "value": value}

        return {"qkv_proj": split}


mobilevitv2_050 = functools.partial(MobileViTV2, 0.5)
