"""CoAtNet: stages of convolutions, then stages of attention.

Dai et al., "CoAtNet: Marrying Convolution and Attention for All Data Sizes", NeurIPS 2021,
arXiv:2106.04803. Every place attends to every place, with a learned bias for each offset. This
follows timm's "rw" models: the width of the attention is that of the block's input, not of its
output. `hybrid.py` has the other differences.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn
import flax_attn.nnx
from vision_models.hybrid import HEAD_DIM, Hybrid, MBConv, Shortcut, Stage
from vision_models.layers import check_image_size, check_multiple, means
from vision_models.transformer import Block, Mlp


class RelativeAttention(nnx.Module):
    """Attention over the whole feature map, after average pooling if the block has a stride."""

    def __init__(self, in_features: int, features: int, stride: int, size: int, *, rngs: nnx.Rngs):
        num_heads = in_features // HEAD_DIM
        self.attention = flax_attn.nnx.MultiHeadAttention(
            num_heads, in_features, out_features=features, rngs=rngs
        )
        self.relative_bias = nnx.Param(jnp.zeros(((2 * size - 1) ** 2, num_heads)))
        self.stride = stride
        self.size = (size, size)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, size, size, features]`."""
        x = means(x, self.stride)
        y = self.attention(
            x.reshape(x.shape[0], -1, x.shape[-1]),
            score_mod=flax_attn.scores.RelativeBias2D(self.relative_bias[...], self.size),
            query_coords=flax_attn.Coords.grid(*self.size),
        )
        return y.reshape(*x.shape[:3], -1)


def relative_block(
    in_features: int, features: int, stride: int, *, size: int, rngs: nnx.Rngs
) -> Block:
    """A transformer block whose output has `size` · `size` places; stride 2 halves the map."""
    shortcut = Shortcut(in_features, features, stride, use_bias=True, rngs=rngs)
    attention = RelativeAttention(in_features, features, stride, size, rngs=rngs)
    mlp = Mlp(features, 4 * features, rngs=rngs)
    return Block(features, attention, mlp, in_features=in_features, shortcut=shortcut, rngs=rngs)


class CoAtNet(Hybrid):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      stem_widths: Channels of the two convolutions before the stages.
      features: Channels of each of four stages; a head has 32.
      depths: Number of blocks of each stage. The first two stages are convolutions.
      image_size: H = W, a multiple of 32.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        stem_widths: tuple[int, int],
        features: Sequence[int],
        depths: Sequence[int],
        *,
        image_size: int = 224,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        check_multiple("CoAtNet", image_size, 32)
        self.image_size = image_size
        convolution = functools.partial(MBConv, pooled=True, reduction=4, use_bias=True)
        blocks = [
            convolution,
            convolution,
            functools.partial(relative_block, size=image_size // 16),
            functools.partial(relative_block, size=image_size // 32),
        ]
        stages = [Stage(*stage) for stage in zip(features, depths, blocks, strict=True)]
        super().__init__(stem_widths, stages, num_classes=num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_image_size(self, x, self.image_size)
        return super().__call__(x)

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return super().timm_names | {"attn": "attention.attention", "norm1.norm": "norm1"}


coatnet_nano = functools.partial(CoAtNet, (32, 64), (64, 128, 256, 512), (3, 4, 6, 3))
coatnet_test = functools.partial(CoAtNet, (16, 32), (32, 64, 96, 128), (1, 1, 2, 1), image_size=160)
