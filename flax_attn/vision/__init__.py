"""Attention for images, one mechanism per file.

Letters: `B` batch (any number of leading axes), `H W` height and width, `C` channels, `R` reduced
channels. Images are channels-last `[*B, H, W, C]`. Unless a mechanism says otherwise, the output
has the shape and dtype of the input. Pooling statistics are float32 (float64 for float64 inputs).

Weights are passed as maps: callables from array to array, such as those of `flax_attn.maps`, Linen
layers or NNX layers. A "map of" a shape returns the same shape. A "place" is one spatial position
of an image. A function `..._gate` returns the factor by which its mechanism multiplies the input.
"""

from flax_attn.vision._attention_gate import attention_gate, attention_gate_gate
from flax_attn.vision._attention_pool import attention_pool
from flax_attn.vision._bam import bam, bam_gate
from flax_attn.vision._bottleneck_attention import bottleneck_attention
from flax_attn.vision._cbam import cbam
from flax_attn.vision._channel_affinity_attention import channel_affinity_attention
from flax_attn.vision._channel_attention import channel_attention, channel_attention_gate
from flax_attn.vision._context_anchor_attention import (
    context_anchor_attention,
    context_anchor_attention_gate,
)
from flax_attn.vision._coordinate_attention import coordinate_attention, coordinate_attention_gate
from flax_attn.vision._criss_cross_attention import criss_cross_attention
from flax_attn.vision._cross_covariance_attention import cross_covariance_attention
from flax_attn.vision._double_attention import double_attention
from flax_attn.vision._eca import eca, eca_gate, eca_kernel_size
from flax_attn.vision._effective_squeeze_excite import (
    effective_squeeze_excite,
    effective_squeeze_excite_gate,
)
from flax_attn.vision._efficient_local_attention import (
    efficient_local_attention,
    efficient_local_attention_gate,
)
from flax_attn.vision._efficient_multi_scale_attention import (
    efficient_multi_scale_attention,
    efficient_multi_scale_attention_gate,
)
from flax_attn.vision._external_attention import external_attention
from flax_attn.vision._focal_modulation import focal_modulation
from flax_attn.vision._frequency_channel_attention import (
    frequency_channel_attention,
    frequency_channel_attention_gate,
)
from flax_attn.vision._gated_channel_transform import (
    gated_channel_transform,
    gated_channel_transform_gate,
)
from flax_attn.vision._gather_excite import gather_excite, gather_excite_gate
from flax_attn.vision._global_context import global_context, global_context_weights
from flax_attn.vision._grid_attention import grid_attention
from flax_attn.vision._halo_attention import halo_attention
from flax_attn.vision._lambda_layer import lambda_layer
from flax_attn.vision._large_kernel_attention import (
    large_kernel_attention,
    large_kernel_attention_gate,
)
from flax_attn.vision._large_selective_kernel import (
    large_selective_kernel,
    large_selective_kernel_gate,
)
from flax_attn.vision._non_local import non_local
from flax_attn.vision._outlook_attention import outlook_attention
from flax_attn.vision._polarized_attention import polarized_attention, polarized_attention_gate
from flax_attn.vision._position_attention import position_attention
from flax_attn.vision._scse import scse, scse_gate
from flax_attn.vision._selective_kernel import selective_kernel
from flax_attn.vision._separable_attention import separable_attention
from flax_attn.vision._separable_large_kernel_attention import (
    separable_kernel_sizes,
    separable_large_kernel_attention,
    separable_large_kernel_attention_gate,
)
from flax_attn.vision._shuffle_attention import shuffle_attention, shuffle_attention_gate
from flax_attn.vision._simam import simam, simam_gate
from flax_attn.vision._spatial_attention import spatial_attention, spatial_attention_gate
from flax_attn.vision._spatial_group_enhance import (
    spatial_group_enhance,
    spatial_group_enhance_gate,
)
from flax_attn.vision._spatial_reduction_attention import spatial_reduction_attention
from flax_attn.vision._split_attention import split_attention
from flax_attn.vision._squeeze_excite import squeeze_excite, squeeze_excite_gate
from flax_attn.vision._triplet_attention import triplet_attention, triplet_attention_gate
from flax_attn.vision._window_attention import window_attention

__all__ = [
    "attention_gate",
    "attention_gate_gate",
    "attention_pool",
    "bam",
    "bam_gate",
    "bottleneck_attention",
    "cbam",
    "channel_affinity_attention",
    "channel_attention",
    "channel_attention_gate",
    "context_anchor_attention",
    "context_anchor_attention_gate",
    "coordinate_attention",
    "coordinate_attention_gate",
    "criss_cross_attention",
    "cross_covariance_attention",
    "double_attention",
    "eca",
    "eca_gate",
    "eca_kernel_size",
    "effective_squeeze_excite",
    "effective_squeeze_excite_gate",
    "efficient_local_attention",
    "efficient_local_attention_gate",
    "efficient_multi_scale_attention",
    "efficient_multi_scale_attention_gate",
    "external_attention",
    "focal_modulation",
    "frequency_channel_attention",
    "frequency_channel_attention_gate",
    "gated_channel_transform",
    "gated_channel_transform_gate",
    "gather_excite",
    "gather_excite_gate",
    "global_context",
    "global_context_weights",
    "grid_attention",
    "halo_attention",
    "lambda_layer",
    "large_kernel_attention",
    "large_kernel_attention_gate",
    "large_selective_kernel",
    "large_selective_kernel_gate",
    "non_local",
    "outlook_attention",
    "polarized_attention",
    "polarized_attention_gate",
    "position_attention",
    "scse",
    "scse_gate",
    "selective_kernel",
    "separable_attention",
    "separable_kernel_sizes",
    "separable_large_kernel_attention",
    "separable_large_kernel_attention_gate",
    "shuffle_attention",
    "shuffle_attention_gate",
    "simam",
    "simam_gate",
    "spatial_attention",
    "spatial_attention_gate",
    "spatial_group_enhance",
    "spatial_group_enhance_gate",
    "spatial_reduction_attention",
    "split_attention",
    "squeeze_excite",
    "squeeze_excite_gate",
    "triplet_attention",
    "triplet_attention_gate",
    "window_attention",
]


def __dir__() -> list[str]:
    return __all__
