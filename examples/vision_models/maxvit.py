"""MaxViT: each block has a convolution, attention within windows, and attention across windows.

Tu et al., "MaxViT: Multi-Axis Vision Transformer", ECCV 2022, arXiv:2204.01697. `hybrid.py` says
how timm's "rw" models differ from the paper.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx

import flax_attn.nnx
from vision_models.hybrid import HEAD_DIM, Hybrid, MBConv, Stage
from vision_models.layers import check_images, check_multiple
from vision_models.transformer import Block, Mlp


class MultiAxisBlock(nnx.Module):
    """A convolution, window attention and grid attention."""

    def __init__(
        self, in_features: int, features: int, stride: int, *, window_size: int, rngs: nnx.Rngs
    ):
        num_heads = features // HEAD_DIM
        within = flax_attn.nnx.WindowAttention(
            features, num_heads=num_heads, window_size=window_size, rngs=rngs
        )
        across = flax_attn.nnx.GridAttention(
            features, num_heads=num_heads, grid_size=window_size, rngs=rngs
        )
        self.conv = MBConv(in_features, features, stride, rngs=rngs)
        self.within = Block(features, within, Mlp(features, 4 * features, rngs=rngs), rngs=rngs)
        self.across = Block(features, across, Mlp(features, 4 * features, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        return self.across(self.within(self.conv(x)))


class MaxViT(Hybrid):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      stem_widths: Channels of the two convolutions before the stages.
      features: Channels of each stage, multiples of 32, as a head has 32.
      depths: Number of blocks of each stage.
      image_size: S, a multiple of 32. H and W are multiples of S, and a window has (S / 32)²
        places.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        stem_widths: tuple[int, int],
        features: Sequence[int],
        depths: Sequence[int],
        *,
        image_size: int = 256,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        check_multiple("MaxViT", image_size, 32)
        self.image_size = image_size
        block = functools.partial(MultiAxisBlock, window_size=image_size // 32)
        stages = [Stage(*sizes, block) for sizes in zip(features, depths, strict=True)]
        super().__init__(stem_widths, stages, num_classes=num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        if x.shape[1] % self.image_size or x.shape[2] % self.image_size:
            raise ValueError(
                f"MaxViT: images must be [B, H, W, 3] with H and W multiples of image_size = "
                f"{self.image_size}, got {list(x.shape)}. Build the model with another image_size."
            )
        return super().__call__(x)


maxvit_nano = functools.partial(MaxViT, (32, 64), (64, 128, 256, 512), (1, 2, 3, 1))
maxvit_test = functools.partial(MaxViT, (16, 32), (32, 64, 96, 128), (1, 1, 1, 1), image_size=160)
