"""Weighted sums over an image, without a copy of the image for the gradients.

Reverse mode of the plain formula keeps the image in float32, and XLA for CPUs stores the weights
broadcast to the image. With gradients that is 1 image more in float32 and 4 in bfloat16, and 2.4
times the time (jaxlib 0.10.2 and 0.12.0). The global context block takes 2 to 3.5 times as long.
"""

import functools

import jax
import jax.numpy as jnp

from flax_attn._checks import broadcast_like, statistics_dtype
from flax_attn._cpu.barriers import separate
from flax_attn._cpu.switch import is_enabled

Axes = int | tuple[int, ...]


def weighted_sum(x: jax.Array, weights: jax.Array, axis: Axes) -> jax.Array:
    """Σ x ⊙ w over some axes, which stay with size 1, in at least float32.

    Args:
      x: The image.
      weights: w, of size 1 along the axes where it is constant.
      axis: The axes that are summed over.
    """
    return (_weighted_sum if is_enabled() else _plain)(x, weights, axis)


def _plain(x: jax.Array, weights: jax.Array, axis: Axes) -> jax.Array:
    dtype = statistics_dtype(x.dtype)
    wide = broadcast_like(weights.astype(dtype), x)
    return jnp.sum(x.astype(dtype) * wide, axis=axis, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _weighted_sum(x: jax.Array, weights: jax.Array, axis: Axes) -> jax.Array:
    x, weights = separate(x, weights)
    return _plain(x, weights, axis)


@_weighted_sum.defjvp
def _weighted_sum_jvp(
    axis: Axes, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _weighted_sum(*primals, axis), _tangent(axis, *tangents, *primals)


@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers use it
@functools.partial(jax.checkpoint, static_argnums=0)  # keeps x and w only
def _tangent(
    axis: Axes, dx: jax.Array, dweights: jax.Array, x: jax.Array, weights: jax.Array
) -> jax.Array:
    x, weights = separate(x, weights)
    by_weights = _plain(x, dweights, axis)
    # A barrier, so that the two terms do not share a cotangent broadcast to the image.
    return by_weights + separate(_plain(dx, weights, axis))[0]
