"""Groups of consecutive channels: `[*B, H, W, C]` as `[*B, H, W, G, P]`."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype


def split_groups(x: jax.Array, *sizes: int) -> jax.Array:
    """Split the channels, the outermost group first: `[..., C]` -> `[..., *sizes]`."""
    return x.reshape(*x.shape[:-1], *sizes)


def standardize_places(grouped: jax.Array, epsilon: float) -> jax.Array:
    """Standardise each channel of `[*B, H, W, G, P]` to mean 0 and variance 1 over H and W.

    This is instance normalisation without gain and offset, in at least float32.
    """
    grouped = grouped.astype(statistics_dtype(grouped.dtype))
    centred = grouped - jnp.mean(grouped, axis=(-4, -3), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(-4, -3), keepdims=True)
    return centred * lax.rsqrt(variance + epsilon)
