"""Flax Linen modules: each owns its maps and calls the function of the same name.

They sow what they attend to into the "intermediates" collection, which costs nothing unless it is
asked for: `module.apply(variables, x, mutable=["intermediates"])`.
"""

from flax_attn.attention import attention_fn
from flax_attn.linen._additive_attention import AdditiveAttention
from flax_attn.linen._attention_gate import AttentionGate
from flax_attn.linen._attention_pool import AttentionPool
from flax_attn.linen._bam import BAM
from flax_attn.linen._bottleneck_attention import BottleneckAttention
from flax_attn.linen._cbam import CBAM
from flax_attn.linen._channel_affinity_attention import ChannelAffinityAttention
from flax_attn.linen._channel_attention import ChannelAttention
from flax_attn.linen._context_anchor_attention import ContextAnchorAttention
from flax_attn.linen._coordinate_attention import CoordinateAttention
from flax_attn.linen._criss_cross_attention import CrissCrossAttention
from flax_attn.linen._cross_covariance_attention import CrossCovarianceAttention
from flax_attn.linen._double_attention import DoubleAttention
from flax_attn.linen._eca import ECA
from flax_attn.linen._effective_squeeze_excite import EffectiveSqueezeExcite
from flax_attn.linen._efficient_local_attention import EfficientLocalAttention
from flax_attn.linen._efficient_multi_scale_attention import EfficientMultiScaleAttention
from flax_attn.linen._external_attention import ExternalAttention
from flax_attn.linen._focal_modulation import FocalModulation
from flax_attn.linen._frequency_channel_attention import FrequencyChannelAttention
from flax_attn.linen._gated_channel_transform import GatedChannelTransform
from flax_attn.linen._gather_excite import GatherExcite
from flax_attn.linen._global_context import GlobalContext
from flax_attn.linen._grid_attention import GridAttention
from flax_attn.linen._halo_attention import HaloAttention
from flax_attn.linen._lambda_layer import LambdaLayer
from flax_attn.linen._large_kernel_attention import LargeKernelAttention
from flax_attn.linen._large_selective_kernel import LargeSelectiveKernel
from flax_attn.linen._learned_positions import LearnedPositions
from flax_attn.linen._multi_head_attention import MultiHeadAttention
from flax_attn.linen._non_local import NonLocal
from flax_attn.linen._outlook_attention import OutlookAttention
from flax_attn.linen._polarized_attention import PolarizedAttention
from flax_attn.linen._position_attention import PositionAttention
from flax_attn.linen._scse import SCSE
from flax_attn.linen._selective_kernel import SelectiveKernel
from flax_attn.linen._separable_attention import SeparableAttention
from flax_attn.linen._separable_large_kernel_attention import SeparableLargeKernelAttention
from flax_attn.linen._shuffle_attention import ShuffleAttention
from flax_attn.linen._simam import SimAM
from flax_attn.linen._spatial_attention import SpatialAttention
from flax_attn.linen._spatial_group_enhance import SpatialGroupEnhance
from flax_attn.linen._spatial_reduction_attention import SpatialReductionAttention
from flax_attn.linen._split_attention import SplitAttention
from flax_attn.linen._squeeze_excite import SqueezeExcite
from flax_attn.linen._triplet_attention import TripletAttention
from flax_attn.linen._window_attention import WindowAttention

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
