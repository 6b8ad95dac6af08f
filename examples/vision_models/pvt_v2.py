"""The pyramid vision transformer, version 2 (PVT v2).

Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", Computational Visual
Media 2022, arXiv:2106.13797. Every place attends to a feature map that a convolution has reduced.
There is no positional encoding, as the MLP contains a convolution.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.layers import LayerNorm, check_images, conv
from vision_models.transformer import Block


class NeighborMlp(nnx.Module):
    """y = fc2(GELU(dwconv(fc1(x)))) with a depthwise convolution."""

    def __init__(self, features: int, hidden_features: int, *, rngs: nnx.Rngs):
        hidden = hidden_features
        self.fc1 = nnx.Linear(features, hidden, rngs=rngs)
        self.dwconv = conv(hidden, hidden, 3, groups=hidden, use_bias=True, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to the same."""
        return self.fc2(jax.nn.gelu(self.dwconv(self.fc1(x)), approximate=False))


class Embedding(nnx.Module):
    """Embedding of overlapping patches: a convolution that is wider than its stride."""

    def __init__(self, in_features: int, features: int, size: int, stride: int, *, rngs: nnx.Rngs):
        self.proj = conv(in_features, features, size, stride, use_bias=True, rngs=rngs)
        self.norm = LayerNorm(features, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / stride, W / stride, features]`."""
        return self.norm(self.proj(x))


class Stage(nnx.Module):
    """A patch embedding, blocks, and a norm."""

    def __init__(
        self,
        embedding: Embedding,
        features: int,
        depth: int,
        num_heads: int,
        reduction: int,
        expansion: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.embedding = embedding
        self.blocks = nnx.List()
        for _ in range(depth):
            attention = flax_attn.nnx.SpatialReductionAttention(
                features, num_heads=num_heads, reduction=reduction, rngs=rngs
            )
            mlp = NeighborMlp(features, expansion * features, rngs=rngs)
            self.blocks.append(Block(features, attention, mlp, rngs=rngs))
        self.norm = LayerNorm(features, epsilon=1e-6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From a feature map to a smaller one."""
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PyramidVisionTransformerV2(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      features: Width of each stage.
      depths: Number of blocks of each stage.
      num_heads: Number of heads N of each stage.
      reductions: Spatial reduction R of each stage. Rows and columns beyond the last multiple of R
        are not attended to.
      expansions: Width of the MLPs of each stage, divided by the width of the stage.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        features: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        reductions: Sequence[int] = (8, 4, 2, 1),
        expansions: Sequence[int] = (8, 8, 4, 4),
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        self.stages = nnx.List()
        before = 3
        stages = zip(features, depths, num_heads, reductions, expansions, strict=True)
        for i, (after, *options) in enumerate(stages):
            size, stride = (3, 2) if i else (7, 4)
            embedding = Embedding(before, after, size, stride, rngs=rngs)
            self.stages.append(Stage(embedding, after, *options, rngs=rngs))
            before = after
        self.head = nnx.Linear(before, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        for stage in self.stages:
            x = stage(x)
        return self.head(jnp.mean(x, axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            "patch_embed": "stages.0.embedding",
            "downsample": "embedding",
            "attn.q": "attention.query",
            "attn.sr": "attention.reduce",
            "attn.proj": "attention.out",
            "attn": "attention",
        }


pvt_v2_b0 = functools.partial(
    PyramidVisionTransformerV2, (32, 64, 160, 256), (2, 2, 2, 2), (1, 2, 5, 8)
)
