"""Flax NNX modules: each owns its maps and calls the function of the same name.

They sow what they attend to as `nnx.Intermediate`, inside `nnx.capture` only:
`nnx.capture(model, nnx.Intermediate)(x)`.
"""

from flax_attn.attention import attention_fn
from flax_attn.nnx._additive_attention import AdditiveAttention
from flax_attn.nnx._attention_gate import AttentionGate
from flax_attn.nnx._attention_pool import AttentionPool
from flax_attn.nnx._bam import BAM
from flax_attn.nnx._bottleneck_attention import BottleneckAttention
from flax_attn.nnx._cbam import CBAM
from flax_attn.nnx._channel_affinity_attention import ChannelAffinityAttention
from flax_attn.nnx._channel_attention import ChannelAttention
from flax_attn.nnx._context_anchor_attention import ContextAnchorAttention
from flax_attn.nnx._coordinate_attention import CoordinateAttention
from flax_attn.nnx._criss_cross_attention import CrissCrossAttention
from flax_attn.nnx._cross_covariance_attention import CrossCovarianceAttention
from flax_attn.nnx._double_attention import DoubleAttention
from flax_attn.nnx._eca import ECA
from flax_attn.nnx._effective_squeeze_excite import EffectiveSqueezeExcite
from flax_attn.nnx._efficient_local_attention import EfficientLocalAttention
from flax_attn.nnx._efficient_multi_scale_attention import EfficientMultiScaleAttention
from flax_attn.nnx._external_attention import ExternalAttention
from flax_attn.nnx._focal_modulation import FocalModulation
from flax_attn.nnx._frequency_channel_attention import FrequencyChannelAttention
from flax_attn.nnx._gated_channel_transform import GatedChannelTransform
from flax_attn.nnx._gather_excite import GatherExcite
from flax_attn.nnx._global_context import GlobalContext
from flax_attn.nnx._grid_attention import GridAttention
from flax_attn.nnx._halo_attention import HaloAttention
from flax_attn.nnx._lambda_layer import LambdaLayer
from flax_attn.nnx._large_kernel_attention import LargeKernelAttention
from flax_attn.nnx._large_selective_kernel import LargeSelectiveKernel
from flax_attn.nnx._learned_positions import LearnedPositions
from flax_attn.nnx._multi_head_attention import MultiHeadAttention
from flax_attn.nnx._non_local import NonLocal
from flax_attn.nnx._outlook_attention import OutlookAttention
from flax_attn.nnx._polarized_attention import PolarizedAttention
from flax_attn.nnx._position_attention import PositionAttention
from flax_attn.nnx._scse import SCSE
from flax_attn.nnx._selective_kernel import SelectiveKernel
from flax_attn.nnx._separable_attention import SeparableAttention
from flax_attn.nnx._separable_large_kernel_attention import SeparableLargeKernelAttention
from flax_attn.nnx._shuffle_attention import ShuffleAttention
from flax_attn.nnx._simam import SimAM
from flax_attn.nnx._spatial_attention import SpatialAttention
from flax_attn.nnx._spatial_group_enhance import SpatialGroupEnhance
from flax_attn.nnx._spatial_reduction_attention import SpatialReductionAttention
from flax_attn.nnx._split_attention import SplitAttention
from flax_attn.nnx._squeeze_excite import SqueezeExcite
from flax_attn.nnx._triplet_attention import TripletAttention
from flax_attn.nnx._window_attention import WindowAttention

__all__ = [
    "BAM",
    "CBAM",
    "ECA",
    "SCSE",
    "AdditiveAttention",
    "AttentionGate",
    "AttentionPool",
    "BottleneckAttention",
    "ChannelAffinityAttention",
    "ChannelAttention",
    "ContextAnchorAttention",
    "CoordinateAttention",
    "CrissCrossAttention",
    "CrossCovarianceAttention",
    "DoubleAttention",
    "EffectiveSqueezeExcite",
    "EfficientLocalAttention",
    "EfficientMultiScaleAttention",
    "ExternalAttention",
    "FocalModulation",
    "FrequencyChannelAttention",
    "GatedChannelTransform",
    "GatherExcite",
    "GlobalContext",
    "GridAttention",
    "HaloAttention",
    "LambdaLayer",
    "LargeKernelAttention",
    "LargeSelectiveKernel",
    "LearnedPositions",
    "MultiHeadAttention",
    "NonLocal",
    "OutlookAttention",
    "PolarizedAttention",
    "PositionAttention",
    "SelectiveKernel",
    "SeparableAttention",
    "SeparableLargeKernelAttention",
    "ShuffleAttention",
    "SimAM",
    "SpatialAttention",
    "SpatialGroupEnhance",
    "SpatialReductionAttention",
    "SplitAttention",
    "SqueezeExcite",
    "TripletAttention",
    "WindowAttention",
    "attention_fn",
]


def __dir__() -> list[str]:
    return __all__
