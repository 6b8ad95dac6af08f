"""Flax NNX modules: each owns its maps and calls the function of the same name.

They sow what they attend to as `nnx.Intermediate`, inside `nnx.capture` only:
`nnx.capture(model, nnx.Intermediate)(x)`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.nnx.additive_attention import AdditiveAttention as AdditiveAttention
from flax_attn.nnx.attention_gate import AttentionGate as AttentionGate
from flax_attn.nnx.attention_pool import AttentionPool as AttentionPool
from flax_attn.nnx.bam import BAM as BAM
from flax_attn.nnx.bottleneck_attention import BottleneckAttention as BottleneckAttention
from flax_attn.nnx.cbam import CBAM as CBAM
from flax_attn.nnx.channel_affinity_attention import (
    ChannelAffinityAttention as ChannelAffinityAttention,
)
from flax_attn.nnx.channel_attention import ChannelAttention as ChannelAttention
from flax_attn.nnx.context_anchor_attention import ContextAnchorAttention as ContextAnchorAttention
from flax_attn.nnx.coordinate_attention import CoordinateAttention as CoordinateAttention
from flax_attn.nnx.criss_cross_attention import CrissCrossAttention as CrissCrossAttention
from flax_attn.nnx.cross_covariance_attention import (
    CrossCovarianceAttention as CrossCovarianceAttention,
)
from flax_attn.nnx.double_attention import DoubleAttention as DoubleAttention
from flax_attn.nnx.eca import ECA as ECA
from flax_attn.nnx.effective_squeeze_excite import EffectiveSqueezeExcite as EffectiveSqueezeExcite
from flax_attn.nnx.efficient_local_attention import (
    EfficientLocalAttention as EfficientLocalAttention,
)
from flax_attn.nnx.efficient_multi_scale_attention import (
    EfficientMultiScaleAttention as EfficientMultiScaleAttention,
)
from flax_attn.nnx.external_attention import ExternalAttention as ExternalAttention
from flax_attn.nnx.focal_modulation import FocalModulation as FocalModulation
from flax_attn.nnx.frequency_channel_attention import (
    FrequencyChannelAttention as FrequencyChannelAttention,
)
from flax_attn.nnx.gated_channel_transform import GatedChannelTransform as GatedChannelTransform
from flax_attn.nnx.gather_excite import GatherExcite as GatherExcite
from flax_attn.nnx.global_context import GlobalContext as GlobalContext
from flax_attn.nnx.grid_attention import GridAttention as GridAttention
from flax_attn.nnx.halo_attention import HaloAttention as HaloAttention
from flax_attn.nnx.lambda_layer import LambdaLayer as LambdaLayer
from flax_attn.nnx.large_kernel_attention import LargeKernelAttention as LargeKernelAttention
from flax_attn.nnx.large_selective_kernel import LargeSelectiveKernel as LargeSelectiveKernel
from flax_attn.nnx.learned_positions import LearnedPositions as LearnedPositions
from flax_attn.nnx.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.nnx.non_local import NonLocal as NonLocal
from flax_attn.nnx.outlook_attention import OutlookAttention as OutlookAttention
from flax_attn.nnx.polarized_attention import PolarizedAttention as PolarizedAttention
from flax_attn.nnx.position_attention import PositionAttention as PositionAttention
from flax_attn.nnx.scse import SCSE as SCSE
from flax_attn.nnx.selective_kernel import SelectiveKernel as SelectiveKernel
from flax_attn.nnx.separable_attention import SeparableAttention as SeparableAttention
from flax_attn.nnx.separable_large_kernel_attention import (
    SeparableLargeKernelAttention as SeparableLargeKernelAttention,
)
from flax_attn.nnx.shuffle_attention import ShuffleAttention as ShuffleAttention
from flax_attn.nnx.simam import SimAM as SimAM
from flax_attn.nnx.spatial_attention import SpatialAttention as SpatialAttention
from flax_attn.nnx.spatial_group_enhance import SpatialGroupEnhance as SpatialGroupEnhance
from flax_attn.nnx.spatial_reduction_attention import (
    SpatialReductionAttention as SpatialReductionAttention,
)
from flax_attn.nnx.split_attention import SplitAttention as SplitAttention
from flax_attn.nnx.squeeze_excite import SqueezeExcite as SqueezeExcite
from flax_attn.nnx.triplet_attention import TripletAttention as TripletAttention
from flax_attn.nnx.window_attention import WindowAttention as WindowAttention
