"""The Swin transformer.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021,
arXiv:2103.14030. Every second block shifts its windows by half a window. A feature map that is not
larger than a window is one window without a shift.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.layers import LayerNorm, check_image_size
from vision_models.transformer import Block, Mlp

EPSILON = 1e-5


class PatchMerging(nnx.Module):
    """Merge every 2×2 places into one of twice the width."""

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * in_features, epsilon=EPSILON, rngs=rngs)
        self.reduction = nnx.Linear(4 * in_features, 2 * in_features, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to `[B, H / 2, W / 2, 2 · C]`."""
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, features)
        x = x.transpose(0, 1, 3, 4, 2, 5)  # the lower left place is the second of the four
        return self.reduction(self.norm(x.reshape(*x.shape[:3], 4 * features)))


class Stage(nnx.Module):
    """Patch merging, if any, and blocks."""

    def __init__(
        self,
        features: int,
        depth: int,
        num_heads: int,
        size: int,
        window_size: int,
        *,
        merge: bool,
        rngs: nnx.Rngs,
    ):
        self.merging = PatchMerging(features // 2, rngs=rngs) if merge else nnx.identity
        window_size = min(window_size, size)
        shift_size = window_size // 2 if size > window_size else 0
        self.blocks = nnx.List()
        for i in range(depth):
            attention = flax_attn.nnx.WindowAttention(
                features,
                num_heads=num_heads,
                window_size=window_size,
                shift_size=shift_size if i % 2 else 0,
                rngs=rngs,
            )
            mlp = Mlp(features, 4 * features, rngs=rngs)
            self.blocks.append(Block(features, attention, mlp, epsilon=EPSILON, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to the same, or with merging to `[B, H / 2, W / 2, 2 · C]`."""
        x = self.merging(x)
        for block in self.blocks:
            x = block(x)
        return x


class SwinTransformer(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      features: C, the width of the first stage; each stage doubles it.
      depths: Number of blocks of each stage.
      num_heads: Number of heads N of each stage.
      image_size: H = W, such as 32 · M. The sides of the feature maps, image_size / 4, / 8, / 16
        and / 32, must be multiples of M or less than M.
      window_size: M, the side of a window.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        features: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        image_size: int = 224,
        window_size: int = 7,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        sizes = [image_size // (4 * 2**i) for i in range(len(depths))]
        divides = image_size == sizes[-1] * 4 * 2 ** (len(depths) - 1) > 0
        if not divides or any(size % min(window_size, size) for size in sizes):
            raise ValueError(
                f"SwinTransformer: image_size must give maps whose sides are multiples of "
                f"window_size = {window_size} or less than it, got {image_size}. "
                f"Use a multiple of {4 * 2 ** (len(depths) - 1) * window_size}."
            )
        self.image_size = image_size
        self.patches = nnx.Conv(3, features, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.patch_norm = LayerNorm(features, epsilon=EPSILON, rngs=rngs)
        self.stages = nnx.List()
        stages = zip(depths, num_heads, sizes, strict=True)
        for i, (depth, heads, size) in enumerate(stages):
            self.stages.append(
                Stage(features * 2**i, depth, heads, size, window_size, merge=i > 0, rngs=rngs)
            )
        last = features * 2 ** (len(depths) - 1)
        self.norm = LayerNorm(last, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(last, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_image_size(self, x, self.image_size)
        x = self.patch_norm(self.patches(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            "patch_embed.proj": "patches",
            "patch_embed.norm": "patch_norm",
            "layers": "stages",
            "downsample": "merging",
            "attn.proj": "attention.out",
            "attn.relative_position_bias_table": "attention.relative_bias",
            "attn": "attention",
            "head.fc": "head",
        }


swin_tiny = functools.partial(SwinTransformer, 96, (2, 2, 6, 2), (3, 6, 12, 24))
