"""Flax NNX modules. Each owns its layers and calls the function of the same name.

They are made as `Class(in_features, *, options, rngs=rngs)`. A class describes the arguments that
its function does not have; the others are those of the function. `LayerOptions` describes what all
classes with layers take (`dtype`, `param_dtype`, `kernel_init`, `bias_init`). `norm` makes a
normalisation, called as `norm(features, rngs=rngs)`: by default batch normalisation with the
momentum and ε of PyTorch and an exact variance. `train()` and `eval()` set its phase.

Modules sow their gates and weights as `nnx.Intermediate` inside `nnx.capture` only:
`nnx.capture(model, nnx.Intermediate)(x)`. Large weights are sown only with `sow_weights=True`,
which raises outside `nnx.capture`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.nnx._additive_attention import AdditiveAttention as AdditiveAttention
from flax_attn.nnx._attention_gate import AttentionGate as AttentionGate
from flax_attn.nnx._attention_pool import AttentionPool as AttentionPool
from flax_attn.nnx._bam import BAM as BAM
from flax_attn.nnx._bottleneck_attention import BottleneckAttention as BottleneckAttention
from flax_attn.nnx._cbam import CBAM as CBAM
from flax_attn.nnx._channel_affinity_attention import (
    ChannelAffinityAttention as ChannelAffinityAttention,
)
from flax_attn.nnx._channel_attention import ChannelAttention as ChannelAttention
from flax_attn.nnx._context_anchor_attention import ContextAnchorAttention as ContextAnchorAttention
from flax_attn.nnx._coordinate_attention import CoordinateAttention as CoordinateAttention
from flax_attn.nnx._criss_cross_attention import CrissCrossAttention as CrissCrossAttention
from flax_attn.nnx._cross_covariance_attention import (
    CrossCovarianceAttention as CrossCovarianceAttention,
)
from flax_attn.nnx._double_attention import DoubleAttention as DoubleAttention
from flax_attn.nnx._eca import ECA as ECA
from flax_attn.nnx._effective_squeeze_excite import EffectiveSqueezeExcite as EffectiveSqueezeExcite
from flax_attn.nnx._efficient_local_attention import (
    EfficientLocalAttention as EfficientLocalAttention,
)
from flax_attn.nnx._efficient_multi_scale_attention import (
    EfficientMultiScaleAttention as EfficientMultiScaleAttention,
)
from flax_attn.nnx._external_attention import ExternalAttention as ExternalAttention
from flax_attn.nnx._focal_modulation import FocalModulation as FocalModulation
from flax_attn.nnx._frequency_channel_attention import (
    FrequencyChannelAttention as FrequencyChannelAttention,
)
from flax_attn.nnx._gated_channel_transform import GatedChannelTransform as GatedChannelTransform
from flax_attn.nnx._gather_excite import GatherExcite as GatherExcite
from flax_attn.nnx._global_context import GlobalContext as GlobalContext
from flax_attn.nnx._grid_attention import GridAttention as GridAttention
from flax_attn.nnx._halo_attention import HaloAttention as HaloAttention
from flax_attn.nnx._lambda_layer import LambdaLayer as LambdaLayer
from flax_attn.nnx._large_kernel_attention import LargeKernelAttention as LargeKernelAttention
from flax_attn.nnx._large_selective_kernel import LargeSelectiveKernel as LargeSelectiveKernel
from flax_attn.nnx._learned_positions import LearnedPositions as LearnedPositions
from flax_attn.nnx._multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.nnx._non_local import NonLocal as NonLocal
from flax_attn.nnx._outlook_attention import OutlookAttention as OutlookAttention
from flax_attn.nnx._polarized_attention import PolarizedAttention as PolarizedAttention
from flax_attn.nnx._position_attention import PositionAttention as PositionAttention
from flax_attn.nnx._scse import SCSE as SCSE
from flax_attn.nnx._selective_kernel import SelectiveKernel as SelectiveKernel
from flax_attn.nnx._separable_attention import SeparableAttention as SeparableAttention
from flax_attn.nnx._separable_large_kernel_attention import (
    SeparableLargeKernelAttention as SeparableLargeKernelAttention,
)
from flax_attn.nnx._shuffle_attention import ShuffleAttention as ShuffleAttention
from flax_attn.nnx._simam import SimAM as SimAM
from flax_attn.nnx._spatial_attention import SpatialAttention as SpatialAttention
from flax_attn.nnx._spatial_group_enhance import SpatialGroupEnhance as SpatialGroupEnhance
from flax_attn.nnx._spatial_reduction_attention import (
    SpatialReductionAttention as SpatialReductionAttention,
)
from flax_attn.nnx._split_attention import SplitAttention as SplitAttention
from flax_attn.nnx._squeeze_excite import SqueezeExcite as SqueezeExcite
from flax_attn.nnx._triplet_attention import TripletAttention as TripletAttention
from flax_attn.nnx._window_attention import WindowAttention as WindowAttention

__all__ = [name for name in dir() if not name.startswith("_")]


def __dir__() -> list[str]:
    return __all__
