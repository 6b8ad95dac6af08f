"""Half-precision arrays from which a loop cuts tiles.

XLA for CPUs computes bfloat16 and float16 in float32. Where a loop cuts tiles from such an array,
it converts the whole array in every step. Integers of the same bits are cut first.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.switch import is_enabled


def to_bits(array: jax.Array) -> jax.Array:
    """The bits of a half-precision array; any other array as it is."""
    is_half = array.dtype in (jnp.bfloat16, jnp.float16) and is_enabled()
    return lax.bitcast_convert_type(array, jnp.uint16) if is_half else array


def from_bits(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The array of that dtype whose bits `values` are; `values` if they have the dtype already."""
    return values if values.dtype == dtype else lax.bitcast_convert_type(values, dtype)
