"""Flax Linen modules. Each owns its layers and calls the function of the same name.

A class has the arguments, parameters and sown values of its twin in `flax_attn.nnx`, where they are
described. It infers the channels and the size of its input, and its options are passed by name.
What differs from NNX is described here: `LayerModule` has the options of the layers, and
`NormModule` those of normalisations.

Values are sown into the collection "intermediates". This costs nothing unless it is asked for:
`module.apply(variables, x, mutable=["intermediates"])`. Large weights are sown with
`sow_weights=True`.

The examples assume `from flax_attn import linen`, `import jax.numpy as jnp`,
`key = jax.random.key(0)` and an image `x = jnp.ones((2, 8, 8, 64))`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.linen._channel_gates import ECA as ECA
from flax_attn.linen._channel_gates import ChannelAttention as ChannelAttention
from flax_attn.linen._channel_gates import EffectiveSqueezeExcite as EffectiveSqueezeExcite
from flax_attn.linen._channel_gates import FrequencyChannelAttention as FrequencyChannelAttention
from flax_attn.linen._channel_gates import GatedChannelTransform as GatedChannelTransform
from flax_attn.linen._channel_gates import GatherExcite as GatherExcite
from flax_attn.linen._channel_gates import SqueezeExcite as SqueezeExcite
from flax_attn.linen._global_mixers import ChannelAffinityAttention as ChannelAffinityAttention
from flax_attn.linen._global_mixers import CrissCrossAttention as CrissCrossAttention
from flax_attn.linen._global_mixers import DoubleAttention as DoubleAttention
from flax_attn.linen._global_mixers import ExternalAttention as ExternalAttention
from flax_attn.linen._global_mixers import GlobalContext as GlobalContext
from flax_attn.linen._global_mixers import NonLocal as NonLocal
from flax_attn.linen._global_mixers import PositionAttention as PositionAttention
from flax_attn.linen._joint_gates import BAM as BAM
from flax_attn.linen._joint_gates import CBAM as CBAM
from flax_attn.linen._joint_gates import SCSE as SCSE
from flax_attn.linen._joint_gates import (
    EfficientMultiScaleAttention as EfficientMultiScaleAttention,
)
from flax_attn.linen._joint_gates import PolarizedAttention as PolarizedAttention
from flax_attn.linen._joint_gates import ShuffleAttention as ShuffleAttention
from flax_attn.linen._joint_gates import SpatialGroupEnhance as SpatialGroupEnhance
from flax_attn.linen._kernel_selection import SelectiveKernel as SelectiveKernel
from flax_attn.linen._kernel_selection import SplitAttention as SplitAttention
from flax_attn.linen._large_kernels import ContextAnchorAttention as ContextAnchorAttention
from flax_attn.linen._large_kernels import FocalModulation as FocalModulation
from flax_attn.linen._large_kernels import LargeKernelAttention as LargeKernelAttention
from flax_attn.linen._large_kernels import LargeSelectiveKernel as LargeSelectiveKernel
from flax_attn.linen._large_kernels import (
    SeparableLargeKernelAttention as SeparableLargeKernelAttention,
)
from flax_attn.linen._latent_attention import LatentAttention as LatentAttention
from flax_attn.linen._multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.linen._sequences import AdditiveAttention as AdditiveAttention
from flax_attn.linen._sequences import LearnedPositions as LearnedPositions
from flax_attn.linen._spatial_gates import AttentionGate as AttentionGate
from flax_attn.linen._spatial_gates import CoordinateAttention as CoordinateAttention
from flax_attn.linen._spatial_gates import EfficientLocalAttention as EfficientLocalAttention
from flax_attn.linen._spatial_gates import SimAM as SimAM
from flax_attn.linen._spatial_gates import SpatialAttention as SpatialAttention
from flax_attn.linen._spatial_gates import TripletAttention as TripletAttention
from flax_attn.linen._token_mixers import AttentionPool as AttentionPool
from flax_attn.linen._token_mixers import CrossCovarianceAttention as CrossCovarianceAttention
from flax_attn.linen._token_mixers import LambdaLayer as LambdaLayer
from flax_attn.linen._token_mixers import OutlookAttention as OutlookAttention
from flax_attn.linen._token_mixers import SeparableAttention as SeparableAttention
from flax_attn.linen._token_mixers import SpatialReductionAttention as SpatialReductionAttention
from flax_attn.linen._windows import BottleneckAttention as BottleneckAttention
from flax_attn.linen._windows import GridAttention as GridAttention
from flax_attn.linen._windows import HaloAttention as HaloAttention
from flax_attn.linen._windows import WindowAttention as WindowAttention

__all__ = [name for name in dir() if not name.startswith("_")]


def __dir__() -> list[str]:
    return __all__
