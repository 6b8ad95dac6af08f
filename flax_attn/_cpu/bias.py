"""Biases of layers, with gradients that are summed in at least float32."""

import jax

from flax_attn._checks import expand_rank, is_wide
from flax_attn._cpu.elementwise import elementwise

_add = elementwise(lambda y, bias: y + bias)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + b for each place, `b` having the last axes of y; in the dtype of y."""
    bias = expand_rank(bias, y.ndim)
    return y + bias.astype(y.dtype) if is_wide(y) else _add(y, bias)
