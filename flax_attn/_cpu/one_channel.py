"""Products to one channel, as sums where XLA for CPUs would copy an image for them."""

from typing import Any

import jax
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._cpu.weighted_sum import weighted_sum


def dot_of_one(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **settings: Any
) -> jax.Array:
    """`jax.lax.dot_general` with a kernel `[C, 1]`, for Flax's layers.

    XLA for CPUs has no such product of bfloat16 and converts the image first; a sum needs no copy.
    """
    if statistics_dtype(lhs.dtype) == lhs.dtype:
        return lax.dot_general(lhs, rhs, dimension_numbers, **settings)
    return sum_of_one(lhs, rhs, dimension_numbers, **settings)


def sum_of_one(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **settings: Any
) -> jax.Array:
    """The same as a sum in every dtype.

    On CPUs it takes longer than a product of float32, but no copy of an image that is computed on
    the way.
    """
    # A sum in float32 has any precision, but not another dtype or sharding.
    if {name for name, value in settings.items() if value is not None} - {"precision"}:
        return lax.dot_general(lhs, rhs, dimension_numbers, **settings)
    weights = rhs[:, 0].reshape((1,) * (lhs.ndim - 1) + (-1,))
    return weighted_sum(lhs, weights, -1).astype(lhs.dtype)
