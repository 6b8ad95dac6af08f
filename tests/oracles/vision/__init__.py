"""The vision mechanisms in float64 NumPy, from the papers' equations.

Each takes an image `[N, H, W, C]` (and its other inputs, if it has any) and the parameter tree of
the module, statistics included, as nested dictionaries, and nothing of the library.
"""

from tests.oracles.vision._layers import conv2d as conv2d
from tests.oracles.vision._layers import hard_swish as hard_swish
from tests.oracles.vision._layers import linear as linear
from tests.oracles.vision._layers import norm as norm
from tests.oracles.vision._layers import relu as relu
from tests.oracles.vision._layers import sigmoid as sigmoid
from tests.oracles.vision._layers import softmax as softmax
from tests.oracles.vision.channel_gates import effective_squeeze_excite as effective_squeeze_excite
from tests.oracles.vision.channel_gates import (
    frequency_channel_attention as frequency_channel_attention,
)
from tests.oracles.vision.channel_gates import gated_channel_transform as gated_channel_transform
from tests.oracles.vision.channel_gates import global_context as global_context
from tests.oracles.vision.channel_gates import scse as scse
from tests.oracles.vision.gates import bam as bam
from tests.oracles.vision.gates import cbam as cbam
from tests.oracles.vision.gates import channel_attention as channel_attention
from tests.oracles.vision.gates import coordinate_attention as coordinate_attention
from tests.oracles.vision.gates import eca as eca
from tests.oracles.vision.gates import simam as simam
from tests.oracles.vision.gates import spatial_attention as spatial_attention
from tests.oracles.vision.gates import squeeze_excite as squeeze_excite
from tests.oracles.vision.global_mixers import (
    channel_affinity_attention as channel_affinity_attention,
)
from tests.oracles.vision.global_mixers import criss_cross_attention as criss_cross_attention
from tests.oracles.vision.global_mixers import double_attention as double_attention
from tests.oracles.vision.global_mixers import external_attention as external_attention
from tests.oracles.vision.global_mixers import non_local as non_local
from tests.oracles.vision.global_mixers import position_attention as position_attention
from tests.oracles.vision.group_gates import (
    efficient_multi_scale_attention as efficient_multi_scale_attention,
)
from tests.oracles.vision.group_gates import shuffle_attention as shuffle_attention
from tests.oracles.vision.group_gates import spatial_group_enhance as spatial_group_enhance
from tests.oracles.vision.group_gates import triplet_attention as triplet_attention
from tests.oracles.vision.kernel_selection import (
    context_anchor_attention as context_anchor_attention,
)
from tests.oracles.vision.kernel_selection import large_kernel_attention as large_kernel_attention
from tests.oracles.vision.kernel_selection import large_selective_kernel as large_selective_kernel
from tests.oracles.vision.kernel_selection import selective_kernel as selective_kernel
from tests.oracles.vision.kernel_selection import (
    separable_large_kernel_attention as separable_large_kernel_attention,
)
from tests.oracles.vision.kernel_selection import split_attention as split_attention
from tests.oracles.vision.more_gates import attention_gate as attention_gate
from tests.oracles.vision.more_gates import (
    efficient_local_attention as efficient_local_attention,
)
from tests.oracles.vision.more_gates import gather_excite as gather_excite
from tests.oracles.vision.more_gates import polarized_attention as polarized_attention
from tests.oracles.vision.token_mixers import attention_pool as attention_pool
from tests.oracles.vision.token_mixers import (
    cross_covariance_attention as cross_covariance_attention,
)
from tests.oracles.vision.token_mixers import focal_modulation as focal_modulation
from tests.oracles.vision.token_mixers import lambda_layer as lambda_layer
from tests.oracles.vision.token_mixers import outlook_attention as outlook_attention
from tests.oracles.vision.token_mixers import separable_attention as separable_attention
from tests.oracles.vision.token_mixers import (
    spatial_reduction_attention as spatial_reduction_attention,
)
from tests.oracles.vision.windows import bottleneck_attention as bottleneck_attention
from tests.oracles.vision.windows import grid_attention as grid_attention
from tests.oracles.vision.windows import halo_attention as halo_attention
from tests.oracles.vision.windows import window_attention as window_attention
