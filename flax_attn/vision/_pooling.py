"""Pooling over axes, over windows, and over bins."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._cpu.barriers import reread
from flax_attn._cpu.maximum import maximum
from flax_attn._cpu.weighted_sum import weighted_sum

__all__ = [
    "even_bins",
    "maximum",
    "mean",
    "spatial_max",
    "spatial_mean",
    "weighted_sum",
    "window_sum",
]


def mean(x: jax.Array, axis: int | tuple[int, ...], *after: jax.Array) -> jax.Array:
    """Mean over some axes, in at least float32.

    Where another statistic of the same image is given as `after`, it is computed before the mean,
    and XLA for CPUs reads the image twice instead of converting it to float32 once and storing it.
    """
    return jnp.mean(reread(x, *after), axis=axis, dtype=statistics_dtype(x.dtype))


def spatial_mean(x: jax.Array) -> jax.Array:
    """Mean over height and width: `[*B, H, W, C]` -> `[*B, C]`, in at least float32."""
    return mean(x, (-3, -2))


def spatial_max(x: jax.Array) -> jax.Array:
    """Maximum over height and width: `[*B, H, W, C]` -> `[*B, C]`. Ties share the gradient."""
    return maximum(x, (-3, -2))


def window_sum(x: jax.Array, size: int, stride: int = 1) -> jax.Array:
    """Sums over windows of size × size places with a stride, padded by zeros. The size is odd."""
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
    """The matrix `[bins, length]` whose row i averages the places of bin i.

    Bin i reaches from ⌊i L / P⌋ to ⌈(i + 1) L / P⌉: bins overlap where P does not divide L, as in
    PyTorch's adaptive pooling. The length may be symbolic.
    """
    place, i = jnp.arange(length)[None], jnp.arange(bins)[:, None]
    start, stop = i * length // bins, -(-(i + 1) * length // bins)
    inside = (start <= place) & (place < stop)
    return jnp.where(inside, 1 / (stop - start).astype(dtype), 0)
