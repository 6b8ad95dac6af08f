"""Attention for images, one mechanism per file.

Letters: `B` batch (any number of leading axes), `H W` height and width, `C` channels, `R` reduced
channels. Images are channels-last `[*B, H, W, C]`, and so is what comes out, in the input's dtype.
Pooling statistics are float32 (float64 for float64 inputs). What is learned comes in as maps:
callables from array to array, such as those of `flax_attn.maps`, Linen or NNX layers. A function
`..._gate` gives the factor by which its mechanism multiplies the input.
"""

from flax_attn.vision.attention_gate import attention_gate as attention_gate
from flax_attn.vision.attention_gate import attention_gate_gate as attention_gate_gate
from flax_attn.vision.attention_pool import attention_pool as attention_pool
from flax_attn.vision.bam import bam as bam
from flax_attn.vision.bam import bam_gate as bam_gate
from flax_attn.vision.bottleneck_attention import bottleneck_attention as bottleneck_attention
from flax_attn.vision.cbam import cbam as cbam
from flax_attn.vision.channel_affinity_attention import (
    channel_affinity_attention as channel_affinity_attention,
)
from flax_attn.vision.channel_attention import channel_attention as channel_attention
from flax_attn.vision.channel_attention import channel_attention_gate as channel_attention_gate
from flax_attn.vision.context_anchor_attention import (
    context_anchor_attention as context_anchor_attention,
)
from flax_attn.vision.context_anchor_attention import (
    context_anchor_attention_gate as context_anchor_attention_gate,
)
from flax_attn.vision.coordinate_attention import coordinate_attention as coordinate_attention
from flax_attn.vision.coordinate_attention import (
    coordinate_attention_gate as coordinate_attention_gate,
)
from flax_attn.vision.criss_cross_attention import criss_cross_attention as criss_cross_attention
from flax_attn.vision.cross_covariance_attention import (
    cross_covariance_attention as cross_covariance_attention,
)
from flax_attn.vision.double_attention import double_attention as double_attention
from flax_attn.vision.eca import eca as eca
from flax_attn.vision.eca import eca_gate as eca_gate
from flax_attn.vision.eca import eca_kernel_size as eca_kernel_size
from flax_attn.vision.effective_squeeze_excite import (
    effective_squeeze_excite as effective_squeeze_excite,
)
from flax_attn.vision.effective_squeeze_excite import (
    effective_squeeze_excite_gate as effective_squeeze_excite_gate,
)
from flax_attn.vision.efficient_local_attention import (
    efficient_local_attention as efficient_local_attention,
)
from flax_attn.vision.efficient_local_attention import (
    efficient_local_attention_gate as efficient_local_attention_gate,
)
from flax_attn.vision.efficient_multi_scale_attention import (
    efficient_multi_scale_attention as efficient_multi_scale_attention,
)
from flax_attn.vision.efficient_multi_scale_attention import (
    efficient_multi_scale_attention_gate as efficient_multi_scale_attention_gate,
)
from flax_attn.vision.external_attention import external_attention as external_attention
from flax_attn.vision.focal_modulation import focal_modulation as focal_modulation
from flax_attn.vision.frequency_channel_attention import (
    frequency_channel_attention as frequency_channel_attention,
)
from flax_attn.vision.frequency_channel_attention import (
    frequency_channel_attention_gate as frequency_channel_attention_gate,
)
from flax_attn.vision.gated_channel_transform import (
    gated_channel_transform as gated_channel_transform,
)
from flax_attn.vision.gated_channel_transform import (
    gated_channel_transform_gate as gated_channel_transform_gate,
)
from flax_attn.vision.gather_excite import gather_excite as gather_excite
from flax_attn.vision.gather_excite import gather_excite_gate as gather_excite_gate
from flax_attn.vision.global_context import global_context as global_context
from flax_attn.vision.global_context import global_context_weights as global_context_weights
from flax_attn.vision.grid_attention import grid_attention as grid_attention
from flax_attn.vision.halo_attention import halo_attention as halo_attention
from flax_attn.vision.lambda_layer import lambda_layer as lambda_layer
from flax_attn.vision.large_kernel_attention import large_kernel_attention as large_kernel_attention
from flax_attn.vision.large_kernel_attention import (
    large_kernel_attention_gate as large_kernel_attention_gate,
)
from flax_attn.vision.large_selective_kernel import large_selective_kernel as large_selective_kernel
from flax_attn.vision.large_selective_kernel import (
    large_selective_kernel_gate as large_selective_kernel_gate,
)
from flax_attn.vision.non_local import non_local as non_local
from flax_attn.vision.outlook_attention import outlook_attention as outlook_attention
from flax_attn.vision.polarized_attention import polarized_attention as polarized_attention
from flax_attn.vision.polarized_attention import (
    polarized_attention_gate as polarized_attention_gate,
)
from flax_attn.vision.position_attention import position_attention as position_attention
from flax_attn.vision.scse import scse as scse
from flax_attn.vision.scse import scse_gate as scse_gate
from flax_attn.vision.selective_kernel import selective_kernel as selective_kernel
from flax_attn.vision.separable_attention import separable_attention as separable_attention
from flax_attn.vision.separable_large_kernel_attention import (
    separable_kernel_sizes as separable_kernel_sizes,
)
from flax_attn.vision.separable_large_kernel_attention import (
    separable_large_kernel_attention as separable_large_kernel_attention,
)
from flax_attn.vision.separable_large_kernel_attention import (
    separable_large_kernel_attention_gate as separable_large_kernel_attention_gate,
)
from flax_attn.vision.shuffle_attention import shuffle_attention as shuffle_attention
from flax_attn.vision.shuffle_attention import shuffle_attention_gate as shuffle_attention_gate
from flax_attn.vision.simam import simam as simam
from flax_attn.vision.simam import simam_gate as simam_gate
from flax_attn.vision.spatial_attention import spatial_attention as spatial_attention
from flax_attn.vision.spatial_attention import spatial_attention_gate as spatial_attention_gate
from flax_attn.vision.spatial_group_enhance import spatial_group_enhance as spatial_group_enhance
from flax_attn.vision.spatial_group_enhance import (
    spatial_group_enhance_gate as spatial_group_enhance_gate,
)
from flax_attn.vision.spatial_reduction_attention import (
    spatial_reduction_attention as spatial_reduction_attention,
)
from flax_attn.vision.split_attention import split_attention as split_attention
from flax_attn.vision.squeeze_excite import squeeze_excite as squeeze_excite
from flax_attn.vision.squeeze_excite import squeeze_excite_gate as squeeze_excite_gate
from flax_attn.vision.triplet_attention import triplet_attention as triplet_attention
from flax_attn.vision.triplet_attention import triplet_attention_gate as triplet_attention_gate
from flax_attn.vision.window_attention import window_attention as window_attention
