"""LambdaResNet-26: lambda layers whose position lambdas cover 9×9 places.

Bello, "LambdaNetworks: Modeling Long-Range Interactions Without Attention", ICLR 2021,
arXiv:2102.08602.
"""

import functools
from collections.abc import Mapping

import numpy as np
from flax import nnx

import flax_attn.nnx
from vision_models.bottleneck_resnet import STAGES_26T, BottleneckResNet, Pooled
from vision_models.convert import Split
from vision_models.layers import BatchNorm

NUM_HEADS, KEY_FEATURES = 4, 16


def lambda_layer(features: int, stride: int, reduction: int, *, rngs: nnx.Rngs) -> Pooled:
    """`LambdaLayer`, for maps of any size; with a stride, the sides must be even."""
    attention = flax_attn.nnx.LambdaLayer(
        features, num_heads=NUM_HEADS, key_features=KEY_FEATURES, norm=BatchNorm, rngs=rngs
    )
    return Pooled(attention, stride)


class LambdaResNet(BottleneckResNet):
    """A `BottleneckResNet` with this attention."""

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            "self_attn.norm_q": "mixer.attention.query_norm",
            "self_attn.norm_v": "mixer.attention.value_norm",
            "self_attn.conv_lambda": "mixer.attention.position",
            **super().timm_names,
        }

    @property
    def timm_stacked(self) -> dict[str, Split]:
        """How to split layers that timm computes as one, by timm's name."""

        def split(weight: np.ndarray) -> Mapping[str, np.ndarray]:
            query, key, value = np.split(weight, np.cumsum([NUM_HEADS, 1]) * KEY_FEATURES)
            return {"query": query, "key": key, "value": value}

        return {"qkv": split}


lambda_resnet26t = functools.partial(LambdaResNet, STAGES_26T, self_attention=lambda_layer)
