"""MobileNetV3, large and small.

Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv:1905.02244, tables 1 and 2. The gate of
its squeeze-and-excitation is a hard sigmoid, and R is a quarter of the channels of the map that it
scales, rounded to a multiple of 8. The head pools first and expands the channels afterwards.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from vision_models.inverted_residual import Blocks, make_stages
from vision_models.layers import BatchNorm, check_images, conv, divisible


def squeeze_excite(features: int, in_features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """For `features` channels; the width of the block's input is not used."""
    return flax_attn.nnx.SqueezeExcite(
        features,
        hidden_features=divisible(features / 4, least=0.9),
        use_bias=True,
        gate_fn=jax.nn.hard_sigmoid,
        rngs=rngs,
    )


RELU, HARD_SWISH, SE = jax.nn.relu, jax.nn.hard_swish, squeeze_excite
STEM = 16  # channels of the stem

# Depth, kernel size, stride, expansion, features, attention, activation.
SMALL = (
    (Blocks(1, 3, 2, 1, 16, SE, RELU),),
    (Blocks(1, 3, 2, 4.5, 24, None, RELU), Blocks(1, 3, 1, 3.67, 24, None, RELU)),
    (Blocks(1, 5, 2, 4, 40, SE, HARD_SWISH), Blocks(2, 5, 1, 6, 40, SE, HARD_SWISH)),
    (Blocks(2, 5, 1, 3, 48, SE, HARD_SWISH),),
    (Blocks(3, 5, 2, 6, 96, SE, HARD_SWISH),),
)
LARGE = (
    (Blocks(1, 3, 1, 1, 16, None, RELU),),
    (Blocks(1, 3, 2, 4, 24, None, RELU), Blocks(1, 3, 1, 3, 24, None, RELU)),
    (Blocks(3, 5, 2, 3, 40, SE, RELU),),
    (
        Blocks(1, 3, 2, 6, 80, None, HARD_SWISH),
        Blocks(1, 3, 1, 2.5, 80, None, HARD_SWISH),
        Blocks(2, 3, 1, 2.3, 80, None, HARD_SWISH),
    ),
    (Blocks(2, 3, 1, 6, 112, SE, HARD_SWISH),),
    (Blocks(3, 5, 2, 6, 160, SE, HARD_SWISH),),
)


class MobileNetV3(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Args:
      stages: The rows of the table.
      features: Channels of the last feature map.
      head_features: Channels of the pooled features after the expansion.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Blocks]],
        features: int,
        head_features: int,
        *,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        self.conv_stem = conv(3, STEM, 3, 2, rngs=rngs)
        self.bn1 = BatchNorm(STEM, rngs=rngs)
        self.blocks = make_stages(STEM, stages, rngs=rngs)
        self.conv_last = conv(stages[-1][-1].features, features, 1, rngs=rngs)
        self.bn_last = BatchNorm(features, rngs=rngs)
        self.conv_head = nnx.Linear(features, head_features, rngs=rngs)
        self.classifier = nnx.Linear(head_features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        x = jax.nn.hard_swish(self.bn1(self.conv_stem(x)))
        for stage in self.blocks:
            for block in stage:
                x = block(x)
        x = jax.nn.hard_swish(self.bn_last(self.conv_last(x)))
        x = jax.nn.hard_swish(self.conv_head(jnp.mean(x, axis=(1, 2))))
        return self.classifier(x)

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names, where the last convolution is a stage."""
        return {
            "se.conv_reduce": "attention.reduce",
            "se.conv_expand": "attention.expand",
            f"blocks.{len(self.blocks)}.0.conv": "conv_last",
            f"blocks.{len(self.blocks)}.0.bn1": "bn_last",
        }


mobilenetv3_small = functools.partial(MobileNetV3, SMALL, 576, 1024)
mobilenetv3_large = functools.partial(MobileNetV3, LARGE, 960, 1280)
