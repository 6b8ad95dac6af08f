"""The vision transformer.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929. The size Ti is
from Touvron et al., "Training data-efficient image transformers", ICML 2021, arXiv:2012.12877.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.layers import LayerNorm, check_image_size, check_multiple
from vision_models.transformer import Block, Mlp, with_class_token


class VisionTransformer(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      features: M, the width of a token.
      depth: Number of blocks.
      num_heads: N; a head has M / N features.
      image_size: H = W, a multiple of patch_size.
      patch_size: Height and width of a patch. A patch becomes one token.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        features: int,
        depth: int,
        num_heads: int,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        check_multiple("VisionTransformer", image_size, patch_size)
        patch = (patch_size, patch_size)
        self.image_size = image_size
        self.num_tokens = 1 + (image_size // patch_size) ** 2
        self.patches = nnx.Conv(3, features, patch, strides=patch, padding="VALID", rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, features)))
        self.positions = flax_attn.nnx.LearnedPositions(self.num_tokens, features, rngs=rngs)
        self.blocks = nnx.List()
        for _ in range(depth):
            attention = flax_attn.nnx.MultiHeadAttention(num_heads, features, rngs=rngs)
            mlp = Mlp(features, 4 * features, rngs=rngs)
            self.blocks.append(Block(features, attention, mlp, rngs=rngs))
        self.norm = LayerNorm(features, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_image_size(self, x, self.image_size)
        x = with_class_token(self.patches(x), self.class_token[...])
        x = x + self.positions(jnp.arange(self.num_tokens))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            "patch_embed.proj": "patches",
            "cls_token": "class_token",
            "pos_embed": "positions.embedding",
            "attn.proj": "attention.out",
            "attn": "attention",
        }


vit_tiny = functools.partial(VisionTransformer, 192, 12, 3)
