"""Flax Linen modules: each owns its maps and calls the function of the same name.

They sow what they attend to into the "intermediates" collection, which costs nothing unless it is
asked for: `module.apply(variables, x, mutable=["intermediates"])`.
"""

from flax_attn.attention import attention_fn as attention_fn
from flax_attn.linen.additive_attention import AdditiveAttention as AdditiveAttention
from flax_attn.linen.bam import BAM as BAM
from flax_attn.linen.cbam import CBAM as CBAM
from flax_attn.linen.channel_attention import ChannelAttention as ChannelAttention
from flax_attn.linen.coordinate_attention import CoordinateAttention as CoordinateAttention
from flax_attn.linen.eca import ECA as ECA
from flax_attn.linen.learned_positions import LearnedPositions as LearnedPositions
from flax_attn.linen.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from flax_attn.linen.simam import SimAM as SimAM
from flax_attn.linen.spatial_attention import SpatialAttention as SpatialAttention
from flax_attn.linen.squeeze_excite import SqueezeExcite as SqueezeExcite
