"""Keeping NaN and infinity out of dot products: 0 · NaN is NaN, so a weight of 0 is not enough."""

import jax
import jax.numpy as jnp


def finite(array: jax.Array) -> jax.Array:
    """The array with 0 for what is not finite."""
    return jnp.where(jnp.isfinite(array), array, 0)


def not_finite(array: jax.Array) -> jax.Array:
    """Which vectors along the last axis hold NaN or infinity."""
    return ~jnp.all(jnp.isfinite(array), axis=-1)
