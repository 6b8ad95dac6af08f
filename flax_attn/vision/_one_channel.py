"""Products and convolutions to one channel, which XLA for CPUs has no fast form of."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn.vision._memory import weighted_sum

Padding = tuple[tuple[int, int], ...]


def dot_of_one(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **settings: Any
) -> jax.Array:
    """`jax.lax.dot_general` with a kernel `[C, 1]`, for Flax's layers.

    XLA for CPUs has no such product of bfloat16 and converts the image first; a sum needs no copy.
    """
    if statistics_dtype(lhs.dtype) == lhs.dtype:
        return lax.dot_general(lhs, rhs, dimension_numbers, **settings)
    return sum_of_one(lhs, rhs, dimension_numbers, **settings)


def sum_of_one(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **settings: Any
) -> jax.Array:
    """The same as a sum in every dtype, on CPUs.

    It takes longer than a product of float32, but no copy of an image that is computed on the way.
    """

    def dot(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.dot_general(lhs, rhs, dimension_numbers, **settings)

    def summed(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        weights = rhs[:, 0].reshape((1,) * (lhs.ndim - 1) + (-1,))
        return weighted_sum(lhs, weights, -1).astype(lhs.dtype)

    # A sum in float32 has any precision, but not another dtype or sharding.
    asked = {name for name, value in settings.items() if value is not None} - {"precision"}
    return dot(lhs, rhs) if asked else lax.platform_dependent(lhs, rhs, cpu=summed, default=dot)


def conv_of_one(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` from a few channels to one, for Flax's layers.

    On CPUs it is a sum of shifted images `[B, H, W, C]`, which takes a tenth of the time, and so is
    its gradient; not with steps, dilations or a result of another size or dtype.
    """

    def convolved(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **settings)

    pads = tuple(map(tuple, padding))

    @jax.custom_jvp
    def summed(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return _gather(lhs, rhs, pads)

    @summed.defjvp
    def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (lhs, rhs), (dlhs, drhs) = primals, tangents
        return summed(lhs, rhs), _scatter(dlhs, rhs, pads) + convolved(lhs, drhs)

    shape = jax.eval_shape(convolved, lhs, rhs)
    once = all(n == 1 for n in (*window_strides, *_dilations(settings)))
    if not once or shape.dtype != lhs.dtype or shape.shape != (*lhs.shape[:-1], 1):
        return convolved(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=summed, default=convolved)


def _dilations(settings: Mapping[str, Any]) -> tuple[int, ...]:
    return (*(settings.get("lhs_dilation") or ()), *(settings.get("rhs_dilation") or ()))


@functools.partial(jax.jit, static_argnums=2)  # traced once for blocks of one size
def _gather(image: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Σ k_ijc ⊙ x shifted by i, j: one channel, from rows of the kernel one after another."""
    _, height, width, channels = image.shape
    rows, columns = kernel.shape[:2]
    dtype = statistics_dtype(image.dtype)
    planes = jnp.pad(jnp.moveaxis(image.astype(dtype), -1, 0), ((0, 0), (0, 0), *padding))
    kernel = kernel.astype(dtype)

    def of_row(i: jax.Array | int) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(planes, i, height, axis=2)
        weights = lax.dynamic_index_in_dim(kernel, i, keepdims=False)
        shifted = [
            _entry(weights, j, c) * lax.slice_in_dim(plane, j, j + width, axis=2)
            for c, plane in enumerate(_unstack(seen, channels))
            for j in range(columns)
        ]
        return functools.reduce(jnp.add, shifted)

    total = lax.fori_loop(1, rows, lambda i, total: total + of_row(i), of_row(0))
    return total[..., None].astype(image.dtype)


@functools.partial(jax.jit, static_argnums=2)
def _scatter(image: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """The same as a sum of padded images, of which JAX's transpose is a sum of shifted ones."""
    batch, height, width, channels = image.shape
    rows, columns = kernel.shape[:2]
    dtype = statistics_dtype(image.dtype)
    planes = _unstack(jnp.moveaxis(image.astype(dtype), -1, 0), channels)
    nothing = jnp.zeros((batch, height + rows - 1, width + columns - 1), dtype)
    zero, whole = jnp.zeros((), dtype), ((0, 0, 0), (0, 0, 0))
    kernel = kernel.astype(dtype)

    def add_row(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        weights = lax.dynamic_index_in_dim(kernel, i, keepdims=False)
        padded = [
            lax.pad(_entry(weights, j, c) * plane, zero, (*whole, (columns - 1 - j, j, 0)))
            for c, plane in enumerate(planes)
            for j in range(columns)
        ]
        row = functools.reduce(jnp.add, padded)
        return total + lax.dynamic_update_slice_in_dim(nothing, row, rows - 1 - i, axis=1), None

    total, _ = lax.scan(add_row, nothing, jnp.arange(rows))
    top, left = rows - 1 - padding[0][0], columns - 1 - padding[1][0]
    return total[:, top : top + height, left : left + width, None].astype(image.dtype)


def _unstack(stacked: jax.Array, count: int) -> list[jax.Array]:
    return [lax.index_in_dim(stacked, i, keepdims=False) for i in range(count)]


def _entry(weights: jax.Array, j: int, c: int) -> jax.Array:
    """The weight [j, c, 0] for a plane (as `weights[j, c, 0]` is, which JAX traces slowly)."""
    return lax.reshape(lax.slice(weights, (j, c, 0), (j + 1, c + 1, 1)), (1, 1, 1))
