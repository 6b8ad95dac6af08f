"""Attention for images, one mechanism per file.

Letters: `B` batch (any number of leading axes), `H W` height and width, `C` channels, `R` reduced
channels. Images are channels-last `[*B, H, W, C]`, and so is what comes out, in the input's dtype.
Pooling statistics are float32 (float64 for float64 inputs). What is learned comes in as maps:
callables from array to array, such as those of `flax_attn.maps`, Linen or NNX layers. A function
`..._gate` gives the factor by which its mechanism multiplies the input.
"""

from flax_attn.vision.bam import bam as bam
from flax_attn.vision.bam import bam_gate as bam_gate
from flax_attn.vision.cbam import cbam as cbam
from flax_attn.vision.channel_attention import channel_attention as channel_attention
from flax_attn.vision.channel_attention import channel_attention_gate as channel_attention_gate
from flax_attn.vision.coordinate_attention import coordinate_attention as coordinate_attention
from flax_attn.vision.coordinate_attention import (
    coordinate_attention_gate as coordinate_attention_gate,
)
from flax_attn.vision.eca import eca as eca
from flax_attn.vision.eca import eca_gate as eca_gate
from flax_attn.vision.eca import eca_kernel_size as eca_kernel_size
from flax_attn.vision.simam import simam as simam
from flax_attn.vision.simam import simam_gate as simam_gate
from flax_attn.vision.spatial_attention import spatial_attention as spatial_attention
from flax_attn.vision.spatial_attention import spatial_attention_gate as spatial_attention_gate
from flax_attn.vision.squeeze_excite import squeeze_excite as squeeze_excite
from flax_attn.vision.squeeze_excite import squeeze_excite_gate as squeeze_excite_gate
