"""Pooling over parts of an image: windows, and bins that share it evenly."""

import jax
import jax.numpy as jnp
from jax import lax


def window_sum(x: jax.Array, size: int, stride: int = 1) -> jax.Array:
    """Sums over size × size places around every stride-th, zeros outside; an odd size."""
    batch, reach = x.ndim - 3, size // 2
    return lax.reduce_window(
        x,
        x.dtype.type(0),
        lax.add,
        (*(1,) * batch, size, size, 1),
        (*(1,) * batch, stride, stride, 1),
        (*((0, 0),) * batch, (reach, reach), (reach, reach), (0, 0)),
    )


def even_bins(length: int, bins: int, dtype: jnp.dtype) -> jax.Array:
    """The matrix `[bins, length]` of which row i averages the places of bin i.

    Bin i reaches from ⌊i L / P⌋ to ⌈(i + 1) L / P⌉: bins overlap where P does not divide L, as in
    PyTorch's adaptive pooling. The length may be symbolic.
    """
    place, i = jnp.arange(length)[None], jnp.arange(bins)[:, None]
    start, stop = i * length // bins, -(-(i + 1) * length // bins)
    inside = (start <= place) & (place < stop)
    return jnp.where(inside, 1 / (stop - start).astype(dtype), 0)
