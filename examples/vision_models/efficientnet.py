"""EfficientNet-B0.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
arXiv:1905.11946, table 1. Its squeeze-and-excitation uses SiLU, and R is a quarter of the width of
the block's input, not of the expanded map that it scales.
"""

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.inverted_residual import Blocks, make_stages
from vision_models.layers import BatchNorm, check_images, conv


def squeeze_excite(features: int, in_features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """For `features` channels, in a block whose input has `in_features`."""
    return flax_attn.nnx.SqueezeExcite(
        features,
        hidden_features=round(in_features / 4),
        use_bias=True,
        activation_fn=jax.nn.silu,
        rngs=rngs,
    )


STAGES = tuple(
    (Blocks(depth, kernel_size, stride, expansion, features, squeeze_excite, jax.nn.silu),)
    for depth, kernel_size, stride, expansion, features in (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
)
STEM, HEAD = 32, 1280  # channels of the stem and of the head


class EfficientNetB0(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`."""

    def __init__(self, *, num_classes: int = 1000, rngs: nnx.Rngs):
        self.conv_stem = conv(3, STEM, 3, 2, rngs=rngs)
        self.bn1 = BatchNorm(STEM, rngs=rngs)
        self.blocks = make_stages(STEM, STAGES, rngs=rngs)
        self.conv_head = conv(STAGES[-1][-1].features, HEAD, 1, rngs=rngs)
        self.bn2 = BatchNorm(HEAD, rngs=rngs)
        self.classifier = nnx.Linear(HEAD, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        x = jax.nn.silu(self.bn1(self.conv_stem(x)))
        for stage in self.blocks:
            for block in stage:
                x = block(x)
        x = jax.nn.silu(self.bn2(self.conv_head(x)))
        return self.classifier(jnp.mean(x, axis=(1, 2)))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {"se.conv_reduce": "attention.reduce", "se.conv_expand": "attention.expand"}
