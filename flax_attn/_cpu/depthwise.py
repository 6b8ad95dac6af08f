"""Depthwise convolutions as sums of shifted images."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.geometry import Geometry, as_wide, once_for_a_size, total, zeros


def _taps(geometry: Geometry, kernel: jax.Array) -> Iterator[tuple[jax.Array, int, int]]:
    """The weights `[1, 1, 1, C]` of each tap, and where it reads."""
    rows, columns, _, channels = kernel.shape
    down, right = geometry.dilation
    for i in range(rows):
        for j in range(columns):
            weight = lax.slice(kernel, (i, j, 0, 0), (i + 1, j + 1, 1, channels))
            yield weight, i * down, j * right


@once_for_a_size
def shifts(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_ij k_ij ⊙ x shifted by i and j."""
    height, width = geometry.size(image, kernel)
    batch, _, _, channels = image.shape
    wide, weights = as_wide(image, kernel)
    seen = geometry.padded(wide)
    summed = total(
        weight * lax.slice(seen, (0, i, j, 0), (batch, i + height, j + width, channels))
        for weight, i, j in _taps(geometry, weights)
    )
    return summed.astype(geometry.dtype)


@once_for_a_size
def pieces(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a sum of padded images, of which JAX's transpose is a sum of shifted ones."""
    wide, weights = as_wide(image, kernel)
    below, beside = geometry.reach(kernel)
    zero, all_of_it = jnp.zeros((), wide.dtype), (0, 0, 0)
    whole = total(
        lax.pad(weight * wide, zero, (all_of_it, (below - i, i, 0), (beside - j, j, 0), all_of_it))
        for weight, i, j in _taps(geometry, weights)
    )
    return geometry.cut(whole, kernel)


@once_for_a_size
def tap_by_tap(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same in a loop, of which the transpose for the kernel sums one tap after another."""
    height, width = geometry.size(image, kernel)
    batch, _, _, channels = image.shape
    wide, weights = as_wide(image, kernel)
    seen = geometry.padded(wide)
    columns, (down, right) = kernel.shape[1], geometry.dilation
    each = weights.reshape(-1, 1, 1, 1, channels)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add_tap(so_far: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        n, weight = tap
        start = (0, n // columns * down, n % columns * right, 0)
        shifted = lax.dynamic_slice(seen, start, (batch, height, width, channels))
        return so_far + weight * shifted, None

    nothing = zeros(lax.slice(seen, (0, 0, 0, 0), (batch, height, width, channels)), weights)
    summed, _ = lax.scan(add_tap, nothing, (jnp.arange(len(each)), each))
    return summed.astype(geometry.dtype)
