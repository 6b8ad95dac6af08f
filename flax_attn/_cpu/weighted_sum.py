"""Σ x ⊙ w without a copy of x."""

import functools

import jax
import jax.numpy as jnp

from flax_attn._checks import spread, statistics_dtype
from flax_attn._cpu.barriers import apart


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def weighted_sum(x: jax.Array, weights: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Σ x ⊙ w over some axes, which stay with size 1, in at least float32.

    The weights have size 1 where they are constant. Reverse mode keeps nothing but the two.
    """
    return _sum_of_products(axis, *apart(x, weights))


@weighted_sum.defjvp
def _weighted_sum_jvp(
    axis: int | tuple[int, ...],
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    return weighted_sum(*primals, axis), _change_of_sum(axis, *tangents, *primals)


@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers have it
@functools.partial(jax.checkpoint, static_argnums=0)
def _change_of_sum(
    axis: int | tuple[int, ...],
    dx: jax.Array,
    dweights: jax.Array,
    x: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    x, weights = apart(x, weights)
    of_weights = _sum_of_products(axis, x, dweights)
    # Apart, so that their cotangent is not spread over an image for both.
    return of_weights + apart(_sum_of_products(axis, dx, weights))[0]


def _sum_of_products(axis: int | tuple[int, ...], x: jax.Array, weights: jax.Array) -> jax.Array:
    dtype = statistics_dtype(x.dtype)
    wide = spread(weights.astype(dtype), x)
    return jnp.sum(x.astype(dtype) * wide, axis=axis, keepdims=True)
