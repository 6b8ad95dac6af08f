"""The focal modulation network (FocalNet).

Yang et al., "Focal Modulation Networks", NeurIPS 2022, arXiv:2203.11926. Transformer blocks with
focal modulation in place of attention, which compares no places. timm's names end in srf for 2
levels of context and in lrf for 3.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_attn.nnx
from vision_models.convert import Split
from vision_models.layers import LayerNorm, check_images
from vision_models.transformer import Block, Mlp

EPSILON = 1e-5


class Embedding(nnx.Module):
    """Patch embedding: each patch becomes one place. Patches do not overlap."""

    def __init__(self, in_features: int, features: int, size: int, *, rngs: nnx.Rngs):
        patch = (size, size)
        self.proj = nnx.Conv(
            in_features, features, patch, strides=patch, padding="VALID", rngs=rngs
        )
        self.norm = LayerNorm(features, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H / size, W / size, features]`."""
        return self.norm(self.proj(x))


class Stage(nnx.Module):
    """A patch embedding and blocks."""

    def __init__(
        self, embedding: Embedding, features: int, depth: int, num_levels: int, *, rngs: nnx.Rngs
    ):
        self.embedding = embedding
        self.blocks = nnx.List()
        for _ in range(depth):
            attention = flax_attn.nnx.FocalModulation(features, num_levels=num_levels, rngs=rngs)
            mlp = Mlp(features, 4 * features, rngs=rngs)
            self.blocks.append(Block(features, attention, mlp, epsilon=EPSILON, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """From a feature map to a smaller one."""
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return x


class FocalNet(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      features: C, the width of the first stage; each stage doubles it.
      depths: Number of blocks of each stage.
      num_levels: L, the number of depthwise convolutions of a modulation.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        features: int,
        depths: Sequence[int],
        *,
        num_levels: int = 2,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        self.stages = nnx.List()
        before = 3
        for i, depth in enumerate(depths):
            after = features * 2**i
            embedding = Embedding(before, after, 2 if i else 4, rngs=rngs)
            self.stages.append(Stage(embedding, after, depth, num_levels, rngs=rngs))
            before = after
        self.norm = LayerNorm(before, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(before, num_classes, rngs=rngs)
        self.num_levels = num_levels

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        for stage in self.stages:
            x = stage(x)
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        convs = {f"focal_layers.{i}.0": f"conv_{i}" for i in range(self.num_levels)}
        return {
            "stem": "stages.0.embedding",
            "layers": "stages",
            "downsample": "embedding",
            "modulation.h": "modulation.modulate",
            "modulation.proj": "modulation.out",
            **convs,
            "modulation": "attention",
            "head.fc": "head",
        }

    @property
    def timm_stacked(self) -> dict[str, Split]:
        """How to split layers that timm computes as one, by timm's name."""

        def split(weight: np.ndarray) -> Mapping[str, np.ndarray]:
            features = (len(weight) - self.num_levels - 1) // 2
            parts = np.split(weight, (features, 2 * features))
            return dict(zip(("query", "context", "gate"), parts, strict=True))

        return {"f": split}


focalnet_tiny = functools.partial(FocalNet, 96, (2, 2, 6, 2))
