"""Attention mechanisms for JAX: pure functions, and thin modules in `linen` and `nnx`."""

from flax_attn import attention as attention
from flax_attn import coords as coords
from flax_attn import maps as maps
from flax_attn import masks as masks
from flax_attn import positions as positions
from flax_attn import scores as scores
from flax_attn import vision as vision
from flax_attn import visualize as visualize
from flax_attn.attention import Dropout as Dropout
from flax_attn.attention import additive_attention as additive_attention
from flax_attn.attention import attention_weights as attention_weights
from flax_attn.attention import dot_product_attention as dot_product_attention
from flax_attn.attention import explain as explain
from flax_attn.attention import merge as merge
from flax_attn.attention import multi_head_attention as multi_head_attention
from flax_attn.attention import scaled_dot_product_attention as scaled_dot_product_attention
from flax_attn.coords import Coords as Coords
from flax_attn.masks import Plan as Plan
from flax_attn.masks import make_plan as make_plan
from flax_attn.normalizers import Sigmoid as Sigmoid
from flax_attn.normalizers import Softmax as Softmax

__version__ = "0.1.0"
