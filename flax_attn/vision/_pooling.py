"""Pooling over all of an image, over windows, and over bins that share it evenly."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._cpu.barriers import again, apart
from flax_attn._devices import devices_dependent

LARGE = 2**21  # entries of an image
ROW = 1024, 4096  # entries of a row, at least and at most


def mean(x: jax.Array, axis: int | tuple[int, ...], *after: jax.Array) -> jax.Array:
    """Mean over some axes, in at least float32, of an image that is read again afterwards."""
    return jnp.mean(again(x, *after), axis=axis, dtype=statistics_dtype(x.dtype))


def spatial_mean(x: jax.Array) -> jax.Array:
    """Mean over height and width: `[*B, H, W, C]` -> `[*B, C]`, in at least float32."""
    count = _neighbours(x)
    if count == 1:
        return mean(x, (-3, -2))
    return _sum_in_rows(count, x) / (x.shape[-3] * x.shape[-2])


def _sum(x: jax.Array) -> jax.Array:
    """Sum over height and width: `[*B, H, W, C]` -> `[*B, C]`."""
    return jnp.sum(x, axis=(-3, -2))


def _neighbours(x: jax.Array) -> int:
    """How many places of an image make a row that XLA for CPUs adds faster than single ones."""
    *_, height, width, features = x.shape
    if not all(isinstance(size, int) for size in x.shape) or any(jax.typeof(x).sharding.spec):
        return 1  # symbolic, or split among devices
    if x.dtype == jnp.float32 and x.size >= LARGE:
        for count in range(-(-ROW[0] // features), ROW[1] // features + 1):
            if height * width % count == 0:
                return count
    return 1


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers have it
def _sum_in_rows(count: int, x: jax.Array) -> jax.Array:
    """The sum over height and width, on one CPU of rows that hold `count` places.

    Rows would join what lies on several devices. Derivatives are those of the plain sum: XLA
    spreads a field over an image faster than over rows.
    """

    def in_rows(x: jax.Array) -> jax.Array:
        *batch, height, width, features = x.shape
        rows = x.reshape(*batch, height * width // count, count * features)
        (sums,) = apart(jnp.sum(rows, axis=-2))
        return jnp.sum(sums.reshape(*batch, count, features), axis=-2)

    on_cpus = functools.partial(devices_dependent, one=in_rows, several=_sum)
    return lax.platform_dependent(x, cpu=on_cpus, default=_sum)


@_sum_in_rows.defjvp
def _sum_in_rows_jvp(
    count: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _sum_in_rows(count, *primals), _sum(*tangents)


def spatial_max(x: jax.Array) -> jax.Array:
    """Maximum over height and width, of which ties share the gradient."""
    return largest(x, (-3, -2))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def largest(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Maximum over some axes, in at least float32, of which ties share the gradient."""
    return jnp.max(x, axis=axis).astype(statistics_dtype(x.dtype))


@largest.defjvp
def _largest_jvp(
    axis: int | tuple[int, ...], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    value = largest(*primals, axis)
    return value, _change_of_largest(axis, *tangents, *primals, value)


@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers have it
def _change_of_largest(
    axis: int | tuple[int, ...], dx: jax.Array, x: jax.Array, value: jax.Array
) -> jax.Array:
    wide = jnp.expand_dims(value, axis)
    share = 1 / lax.stop_gradient(_ties(x, wide, axis))
    seen, first, share = apart(x, wide.astype(x.dtype), share)
    tangent = jnp.where(seen == first, dx.astype(share.dtype) * share, 0)
    return jnp.sum(tangent, axis=axis)


def _ties(x: jax.Array, value: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """How often the maximum is reached. XLA for CPUs fuses no comparison into a sum, but this.

    (Numbers that differ by less than the smallest normal one are alike.)
    """
    finfo = jnp.finfo(value.dtype)
    limits = (jnp.full_like(value, n) for n in (finfo.tiny, finfo.min))
    least, lowest, top = apart(*limits, jnp.clip(value, finfo.min, finfo.max))
    # The minimum is x. It keeps LLVM from joining a product that x may be with the difference: at
    # the maximum that would be the product's rounding error, not 0.
    seen = jnp.maximum(jnp.minimum(again(x, value).astype(value.dtype), top), lowest)
    others = jnp.sum(jnp.minimum(top - seen, least), axis=axis, keepdims=True) / finfo.tiny
    axes = [axis] if isinstance(axis, int) else axis
    return jnp.maximum(math.prod(x.shape[a] for a in axes) - others, 1)


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
