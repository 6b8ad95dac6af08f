"""Flax Linen modules. Each owns its layers and calls the function of the same name.

A class describes the arguments that its function does not have; the others are those of the
function. `LayerModule` describes what all classes with layers take (`dtype`, `param_dtype`,
`kernel_init`, `bias_init`), `NormModule` what those with a norm take.

Modules sow their gates and weights into the collection "intermediates". This costs nothing unless
it is asked for: `module.apply(variables, x, mutable=["intermediates"])`. Large weights are sown
only with `sow_weights=True`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.linen._additive_attention import AdditiveAttention as AdditiveAttention
from flax_attn.linen._attention_gate import AttentionGate as AttentionGate
from flax_attn.linen._attention_pool import AttentionPool as AttentionPool
from flax_attn.linen._bam import BAM as BAM
from flax_attn.linen._bottleneck_attention import BottleneckAttention as BottleneckAttention
from flax_attn.linen._cbam import CBAM as CBAM
from flax_attn.linen._channel_affinity_attention import (
    ChannelAffinityAttention as ChannelAffinityAttention,
)
from flax_attn.linen._channel_attention import ChannelAttention as ChannelAttention
from flax_attn.linen._context_anchor_attention import (
    ContextAnchorAttention as ContextAnchorAttention,
)
from flax_attn.linen._coordinate_attention import CoordinateAttention as CoordinateAttention
from flax_attn.linen._criss_cross_attention import CrissCrossAttention as CrissCrossAttention
from flax_attn.linen._cross_covariance_attention import (
    CrossCovarianceAttention as CrossCovarianceAttention,
)
from flax_attn.linen._double_attention import DoubleAttention as DoubleAttention
from flax_attn.linen._eca import ECA as ECA
from flax_attn.linen._effective_squeeze_excite import (
    EffectiveSqueezeExcite as EffectiveSqueezeExcite,
)
from flax_attn.linen._efficient_local_attention import (
    EfficientLocalAttention as EfficientLocalAttention,
)
from flax_attn.linen._efficient_multi_scale_attention import (
    EfficientMultiScaleAttention as EfficientMultiScaleAttention,
)
from flax_attn.linen._external_attention import ExternalAttention as ExternalAttention
from flax_attn.linen._focal_modulation import FocalModulation as FocalModulation
from flax_attn.linen._frequency_channel_attention import (
    FrequencyChannelAttention as FrequencyChannelAttention,
)
from flax_attn.linen._gated_channel_transform import GatedChannelTransform as GatedChannelTransform
from flax_attn.linen._gather_excite import GatherExcite as GatherExcite
from flax_attn.linen._global_context import GlobalContext as GlobalContext
from flax_attn.linen._grid_attention import GridAttention as GridAttention
from flax_attn.linen._halo_attention import HaloAttention as HaloAttention
from flax_attn.linen._lambda_layer import LambdaLayer as LambdaLayer
from flax_attn.linen._large_kernel_attention import LargeKernelAttention as LargeKernelAttention
from flax_attn.linen._large_selective_kernel import LargeSelectiveKernel as LargeSelectiveKernel
from flax_attn.linen._learned_positions import LearnedPositions as LearnedPositions
from flax_attn.linen._multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.linen._non_local import NonLocal as NonLocal
from flax_attn.linen._outlook_attention import OutlookAttention as OutlookAttention
from flax_attn.linen._polarized_attention import PolarizedAttention as PolarizedAttention
from flax_attn.linen._position_attention import PositionAttention as PositionAttention
from flax_attn.linen._scse import SCSE as SCSE
from flax_attn.linen._selective_kernel import SelectiveKernel as SelectiveKernel
from flax_attn.linen._separable_attention import SeparableAttention as SeparableAttention
from flax_attn.linen._separable_large_kernel_attention import (
    SeparableLargeKernelAttention as SeparableLargeKernelAttention,
)
from flax_attn.linen._shuffle_attention import ShuffleAttention as ShuffleAttention
from flax_attn.linen._simam import SimAM as SimAM
from flax_attn.linen._spatial_attention import SpatialAttention as SpatialAttention
from flax_attn.linen._spatial_group_enhance import SpatialGroupEnhance as SpatialGroupEnhance
from flax_attn.linen._spatial_reduction_attention import (
    SpatialReductionAttention as SpatialReductionAttention,
)
from flax_attn.linen._split_attention import SplitAttention as SplitAttention
from flax_attn.linen._squeeze_excite import SqueezeExcite as SqueezeExcite
from flax_attn.linen._triplet_attention import TripletAttention as TripletAttention
from flax_attn.linen._window_attention import WindowAttention as WindowAttention

__all__ = [name for name in dir() if not name.startswith("_")]


def __dir__() -> list[str]:
    return __all__
