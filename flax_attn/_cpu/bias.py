"""Biases of layers, with gradients summed in at least float32.

The gradient of a bias is a sum over all places. In a layer of bfloat16, JAX sums it in bfloat16
(seen with jaxlib 0.10.2 and 0.12.0), which is 10 to 60 % too small for a few thousand places.
"""

import jax

from flax_attn._checks import expand_rank, is_wide
from flax_attn._cpu.elementwise import elementwise
from flax_attn._cpu.switch import is_enabled

_add_wide = elementwise(lambda y, bias: y + bias)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + b at each place, in the dtype of y; `b` has the last axes of y."""
    bias = expand_rank(bias, y.ndim)
    if is_wide(y) or not is_enabled():
        return y + bias.astype(y.dtype)
    return _add_wide(y, bias)
