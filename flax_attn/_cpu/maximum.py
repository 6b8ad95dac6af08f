"""The maximum over some axes of an image, without a copy of the image for the gradient.

The gradient of `jnp.max` is shared by the entries that reach the maximum: it compares all entries,
counts the equal ones and divides. XLA for CPUs does not fuse a comparison into a sum: it stores the
comparisons as an image. Here the ties are counted by arithmetic. The plain formula needs 2 images
more in bfloat16 and 4.6 times the time (jaxlib 0.10.2 and 0.12.0), CBAM twice the time, and in
float32 1 image more.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._cpu.barriers import reread, separate
from flax_attn._cpu.switch import is_enabled

Axes = int | tuple[int, ...]


def maximum(x: jax.Array, axis: Axes) -> jax.Array:
    """Maximum over some axes, in at least float32. Ties share the gradient equally."""
    return (_maximum if is_enabled() else _plain)(x, axis)


def _plain(x: jax.Array, axis: Axes) -> jax.Array:
    return jnp.max(x, axis=axis).astype(statistics_dtype(x.dtype))


_maximum = jax.custom_jvp(_plain, nondiff_argnums=(1,))


@_maximum.defjvp
def _maximum_jvp(
    axis: Axes, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    value = _maximum(*primals, axis)
    return value, _tangent(axis, *tangents, *primals, value)


@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers use it
def _tangent(axis: Axes, dx: jax.Array, x: jax.Array, value: jax.Array) -> jax.Array:
    kept = jnp.expand_dims(value, axis)
    share = 1 / lax.stop_gradient(_count_ties(x, kept, axis))
    x, top, share = separate(x, kept.astype(x.dtype), share)
    return jnp.sum(jnp.where(x == top, dx.astype(share.dtype) * share, 0), axis=axis)


def _count_ties(x: jax.Array, value: jax.Array, axis: Axes) -> jax.Array:
    """How many entries reach the maximum, by arithmetic.

    Entries that differ from it by less than the smallest normal number count as equal.
    """
    finfo = jnp.finfo(value.dtype)
    limits = (jnp.full_like(value, n) for n in (finfo.tiny, finfo.min))
    smallest, lowest, top = separate(*limits, jnp.clip(value, finfo.min, finfo.max))
    # The minimum with `top` is x itself. Where x is a product, it keeps LLVM from fusing the
    # multiplication into the subtraction: the difference at the maximum would be a rounding error
    # instead of 0.
    finite = jnp.maximum(jnp.minimum(reread(x, value).astype(value.dtype), top), lowest)
    below = jnp.sum(jnp.minimum(top - finite, smallest), axis=axis, keepdims=True) / finfo.tiny
    axes = [axis] if isinstance(axis, int) else axis
    return jnp.maximum(math.prod(x.shape[a] for a in axes) - below, 1)
