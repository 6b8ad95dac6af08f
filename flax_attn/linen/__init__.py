"""Flax Linen modules: each owns its maps and calls the function of the same name.

They sow what they attend to into the "intermediates" collection, which costs nothing unless it is
asked for: `module.apply(variables, x, mutable=["intermediates"])`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.linen.additive_attention import AdditiveAttention as AdditiveAttention
from flax_attn.linen.attention_gate import AttentionGate as AttentionGate
from flax_attn.linen.attention_pool import AttentionPool as AttentionPool
from flax_attn.linen.bam import BAM as BAM
from flax_attn.linen.bottleneck_attention import BottleneckAttention as BottleneckAttention
from flax_attn.linen.cbam import CBAM as CBAM
from flax_attn.linen.channel_affinity_attention import (
    ChannelAffinityAttention as ChannelAffinityAttention,
)
from flax_attn.linen.channel_attention import ChannelAttention as ChannelAttention
from flax_attn.linen.context_anchor_attention import (
    ContextAnchorAttention as ContextAnchorAttention,
)
from flax_attn.linen.coordinate_attention import CoordinateAttention as CoordinateAttention
from flax_attn.linen.criss_cross_attention import CrissCrossAttention as CrissCrossAttention
from flax_attn.linen.cross_covariance_attention import (
    CrossCovarianceAttention as CrossCovarianceAttention,
)
from flax_attn.linen.double_attention import DoubleAttention as DoubleAttention
from flax_attn.linen.eca import ECA as ECA
from flax_attn.linen.effective_squeeze_excite import (
    EffectiveSqueezeExcite as EffectiveSqueezeExcite,
)
from flax_attn.linen.efficient_local_attention import (
    EfficientLocalAttention as EfficientLocalAttention,
)
from flax_attn.linen.efficient_multi_scale_attention import (
    EfficientMultiScaleAttention as EfficientMultiScaleAttention,
)
from flax_attn.linen.external_attention import ExternalAttention as ExternalAttention
from flax_attn.linen.focal_modulation import FocalModulation as FocalModulation
from flax_attn.linen.frequency_channel_attention import (
    FrequencyChannelAttention as FrequencyChannelAttention,
)
from flax_attn.linen.gated_channel_transform import GatedChannelTransform as GatedChannelTransform
from flax_attn.linen.gather_excite import GatherExcite as GatherExcite
from flax_attn.linen.global_context import GlobalContext as GlobalContext
from flax_attn.linen.grid_attention import GridAttention as GridAttention
from flax_attn.linen.halo_attention import HaloAttention as HaloAttention
from flax_attn.linen.lambda_layer import LambdaLayer as LambdaLayer
from flax_attn.linen.large_kernel_attention import LargeKernelAttention as LargeKernelAttention
from flax_attn.linen.large_selective_kernel import LargeSelectiveKernel as LargeSelectiveKernel
from flax_attn.linen.learned_positions import LearnedPositions as LearnedPositions
from flax_attn.linen.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.linen.non_local import NonLocal as NonLocal
from flax_attn.linen.outlook_attention import OutlookAttention as OutlookAttention
from flax_attn.linen.polarized_attention import PolarizedAttention as PolarizedAttention
from flax_attn.linen.position_attention import PositionAttention as PositionAttention
from flax_attn.linen.scse import SCSE as SCSE
from flax_attn.linen.selective_kernel import SelectiveKernel as SelectiveKernel
from flax_attn.linen.separable_attention import SeparableAttention as SeparableAttention
from flax_attn.linen.separable_large_kernel_attention import (
    SeparableLargeKernelAttention as SeparableLargeKernelAttention,
)
from flax_attn.linen.shuffle_attention import ShuffleAttention as ShuffleAttention
from flax_attn.linen.simam import SimAM as SimAM
from flax_attn.linen.spatial_attention import SpatialAttention as SpatialAttention
from flax_attn.linen.spatial_group_enhance import SpatialGroupEnhance as SpatialGroupEnhance
from flax_attn.linen.spatial_reduction_attention import (
    SpatialReductionAttention as SpatialReductionAttention,
)
from flax_attn.linen.split_attention import SplitAttention as SplitAttention
from flax_attn.linen.squeeze_excite import SqueezeExcite as SqueezeExcite
from flax_attn.linen.triplet_attention import TripletAttention as TripletAttention
from flax_attn.linen.window_attention import WindowAttention as WindowAttention
