"""BoTNet-26: self-attention over the whole feature map.

Srinivas et al., "Bottleneck Transformers for Visual Recognition", CVPR 2021, arXiv:2101.11605.
"""

import functools

from flax import nnx

import flax_attn.nnx
from vision_models.bottleneck_resnet import STAGES_26T, BottleneckResNet, Pooled
from vision_models.layers import check_multiple


def bottleneck_attention(
    features: int, stride: int, reduction: int, *, image_size: int, rngs: nnx.Rngs
) -> Pooled:
    """`BottleneckAttn`, which does not scale the position terms."""
    size = image_size // reduction
    attention = flax_attn.nnx.BottleneckAttention(
        features, (size, size), scale_positions=False, rngs=rngs
    )
    return Pooled(attention, stride)


def botnet26t(
    *, image_size: int = 256, num_classes: int = 1000, rngs: nnx.Rngs
) -> BottleneckResNet:
    """A model for images of one size, as its tables have a row for every offset.

    H = W = image_size, a multiple of 32.
    """
    check_multiple("botnet26t", image_size, 32)
    attention = functools.partial(bottleneck_attention, image_size=image_size)
    return BottleneckResNet(
        STAGES_26T, self_attention=attention, num_classes=num_classes, rngs=rngs
    )
