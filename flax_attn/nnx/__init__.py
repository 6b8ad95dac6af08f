"""Flax NNX modules: each owns its maps and calls the function of the same name.

They sow what they attend to as `nnx.Intermediate`, inside `nnx.capture` only:
`nnx.capture(model, nnx.Intermediate)(x)`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.nnx.additive_attention import AdditiveAttention as AdditiveAttention
from flax_attn.nnx.bam import BAM as BAM
from flax_attn.nnx.cbam import CBAM as CBAM
from flax_attn.nnx.channel_attention import ChannelAttention as ChannelAttention
from flax_attn.nnx.coordinate_attention import CoordinateAttention as CoordinateAttention
from flax_attn.nnx.eca import ECA as ECA
from flax_attn.nnx.learned_positions import LearnedPositions as LearnedPositions
from flax_attn.nnx.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.nnx.simam import SimAM as SimAM
from flax_attn.nnx.spatial_attention import SpatialAttention as SpatialAttention
from flax_attn.nnx.squeeze_excite import SqueezeExcite as SqueezeExcite
