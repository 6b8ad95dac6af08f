"""Sums of squared deviations from a mean, without a copy of the image in bfloat16.

The mean and the deviations both need the image in float32, which XLA for CPUs stores, and so does
reverse mode: 2 images more in bfloat16 (jaxlib 0.10.2 and 0.12.0).
"""

import jax
import jax.numpy as jnp

from flax_attn._cpu.barriers import separate
from flax_attn._cpu.switch import is_enabled


def squared_deviation(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Σ_{H,W} (x − mean)², `[*B, 1, 1, C]` in the dtype of the mean.

    `mean` must be the mean of x over height and width: its own derivative cancels and is left out.
    """
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
    # Without the tangent of the mean: it is multiplied by Σ (x − mean) = 0.
    x, mean = separate(x, mean)
    terms = 2 * (x.astype(mean.dtype) - mean) * dx.astype(mean.dtype)
    return jnp.sum(terms, axis=(-3, -2), keepdims=True)
