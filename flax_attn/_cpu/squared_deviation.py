"""Sums of squared deviations from a mean, without a copy of the image in bfloat16.

XLA for CPUs stores an image of bfloat16 in float32 if the mean and the deviations need it, and so
does reverse mode (2 images more with jaxlib 0.10.2 to 0.12.0).
"""

import jax
import jax.numpy as jnp

from flax_attn._cpu.barriers import separate
from flax_attn._cpu.switch import is_enabled


def squared_deviation(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Σ_{H,W} (x − mean)², `[*B, 1, 1, C]` in the dtype of the mean over height and width."""
    return (_squared_deviation if is_enabled() else _plain)(x, mean)


def _plain(x: jax.Array, mean: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x.astype(mean.dtype) - mean), axis=(-3, -2), keepdims=True)


@jax.custom_jvp
def _squared_deviation(x: jax.Array, mean: jax.Array) -> jax.Array:
    x, mean = separate(x, mean)
    return _plain(x, mean)


@_squared_deviation.defjvp
def _squared_deviation_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _squared_deviation(*primals), _tangent(tangents[0], *primals)


@jax.checkpoint
def _tangent(dx: jax.Array, x: jax.Array, mean: jax.Array) -> jax.Array:
    # The tangent of the mean cancels: Σ (x − mean) = 0.
    x, mean = separate(x, mean)
    terms = 2 * (x.astype(mean.dtype) - mean) * dx.astype(mean.dtype)
    return jnp.sum(terms, axis=(-3, -2), keepdims=True)
