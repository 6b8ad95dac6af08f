"""The vision outlooker (VOLO).

Yuan, Hou, Jiang, Feng, Yan, "VOLO: Vision Outlooker for Visual Recognition", TPAMI 2022,
arXiv:2106.13112: outlook attention on fine feature maps, self-attention on coarse ones, and finally
a class token that attends to all places. The logits also include those of the head for token
labels: Jiang et al., "All Tokens Matter: Token Labeling for Training Better Vision Transformers",
NeurIPS 2021, arXiv:2104.10858.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.layers import ConvStem, LayerNorm, check_image_size, check_multiple
from vision_models.transformer import Block, Mlp, with_class_token

EPSILON = 1e-5
STEM_FEATURES = 64


class ClassBlock(Block):
    """A block in which only the class token attends, to all tokens."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, 1 + H · W, C]`, the class token first, to the same."""
        y = self.norm1(x)
        class_token = x[:, :1] + self.attention(y[:, :1], y)
        class_token = class_token + self.mlp(self.norm2(class_token))
        return jnp.concatenate([class_token, x[:, 1:]], axis=1)


def outlooker(features: int, num_heads: int, *, rngs: nnx.Rngs) -> Block:
    """A block with outlook attention."""
    attention = flax_attn.nnx.OutlookAttention(features, num_heads=num_heads, stride=2, rngs=rngs)
    return Block(
        features, attention, Mlp(features, 3 * features, rngs=rngs), epsilon=EPSILON, rngs=rngs
    )


def transformer(
    features: int, num_heads: int, block: type[Block] = Block, *, rngs: nnx.Rngs
) -> Block:
    """A block with self-attention. Only its last projection has a bias."""
    attention = flax_attn.nnx.MultiHeadAttention(num_heads, features, use_bias=False, rngs=rngs)
    attention.out = nnx.LinearGeneral(attention.out.in_features, features, axis=(-2, -1), rngs=rngs)
    return block(
        features, attention, Mlp(features, 3 * features, rngs=rngs), epsilon=EPSILON, rngs=rngs
    )


class VisionOutlooker(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      features: Width of the outlookers and of the transformers.
      depths: Number of blocks of each stage. The first stage is made of outlookers.
      num_heads: Number of heads N of the outlookers and of the transformers.
      image_size: H = W, a multiple of 16.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        features: tuple[int, int],
        depths: Sequence[int],
        num_heads: tuple[int, int],
        *,
        image_size: int = 224,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        check_multiple("VisionOutlooker", image_size, 16)
        fine, coarse = features
        self.image_size = image_size
        width, size = STEM_FEATURES, image_size // 16
        self.stem = ConvStem((3, width, width, width), (7, 3, 3), (2, 1, 1), nnx.relu, rngs=rngs)
        patches = functools.partial(nnx.Conv, padding="VALID", rngs=rngs)
        self.patches = patches(width, fine, (4, 4), strides=4)
        self.merging = patches(fine, coarse, (2, 2), strides=2)
        self.positions = nnx.Param(jnp.zeros((1, size, size, coarse)))
        self.stages = nnx.List()
        for i, depth in enumerate(depths):
            stage = nnx.List()
            for _ in range(depth):
                if i == 0:
                    stage.append(outlooker(fine, num_heads[0], rngs=rngs))
                else:
                    stage.append(transformer(coarse, num_heads[1], rngs=rngs))
            self.stages.append(stage)
        self.class_token = nnx.Param(jnp.zeros((1, 1, coarse)))
        self.class_blocks = nnx.List()
        for _ in range(2):
            self.class_blocks.append(transformer(coarse, num_heads[1], ClassBlock, rngs=rngs))
        self.norm = LayerNorm(coarse, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(coarse, num_classes, rngs=rngs)
        self.token_head = nnx.Linear(coarse, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_image_size(self, x, self.image_size)
        x = self.patches(nnx.relu(self.stem(x)))
        outlookers, *stages = self.stages
        for block in outlookers:
            x = block(x)
        x = self.merging(x) + self.positions[...]
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for stage in stages:
            for block in stage:
                x = block(x)
        x = with_class_token(x, self.class_token[...])
        for block in self.class_blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0]) + 0.5 * jnp.max(self.token_head(x[:, 1:]), axis=1)

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            **{f"patch_embed.conv.{3 * i}": f"stem.convs.{i}" for i in range(3)},
            **{f"patch_embed.conv.{3 * i + 1}": f"stem.norms.{i}" for i in range(3)},
            "patch_embed.proj": "patches",
            "pos_embed": "positions",
            "network.0": "stages.0",
            "network.1.proj": "merging",
            **{f"network.{i + 1}": f"stages.{i}" for i in range(1, len(self.stages))},
            "post_network": "class_blocks",
            "cls_token": "class_token",
            "aux_head": "token_head",
            "attn.attn": "attention.score",
            "attn.q": "attention.query",
            "attn.v": "attention.value",
            "attn.proj": "attention.out",
            "attn": "attention",
        }


volo_d1 = functools.partial(VisionOutlooker, (192, 384), (4, 4, 8, 2), (6, 12))
