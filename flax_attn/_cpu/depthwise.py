"""Depthwise convolutions as sums of shifted images.

XLA for CPUs computes a depthwise convolution, and above all the gradient of its kernel, in loops
over single numbers. For a 5×5 kernel on 64 channels it takes 20 times as long as the sum, and 4 to
5 times with gradients (jaxlib 0.10.2 and 0.12.0). Large kernel attention is 8 to 19 times as fast
with the rewrite, and 3 to 13 times with gradients.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.rewrites import (
    Convolution,
    Function,
    Shifts,
    add_up,
    as_shifts,
    as_wide,
    choose_on_cpus,
    traced_once,
    zeros_like_result,
)

MAX_TAPS = 64  # each is a line of the program


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution as a sum over the taps of its kernel."""

    convolution: Convolution
    shifts: Shifts

    def choose(self, plain: Function, rewritten: Function) -> Function:
        return choose_on_cpus(plain, rewritten)

    def value(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        return _sum_of_shifted(self.shifts, image, kernel)

    def by_image(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        return _sum_of_padded(self.shifts, image, kernel)

    def by_kernel(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        return _sum_in_loop(self.shifts, image, kernel)


def rewrite_depthwise(
    convolution: Convolution, image: jax.Array, kernel: jax.Array
) -> Depthwise | None:
    """The rewrite, for a depthwise convolution of stride 1 with few taps."""
    shifts = as_shifts(convolution, image, kernel)
    if shifts is None:
        return None
    rows, columns, _, out = kernel.shape
    depthwise = 1 < convolution.feature_group_count == image.shape[-1] == out
    return Depthwise(convolution, shifts) if depthwise and rows * columns <= MAX_TAPS else None


def _taps(shifts: Shifts, kernel: jax.Array) -> Iterator[tuple[jax.Array, int, int]]:
    """The weights `[1, 1, 1, C]` of each tap, and how far it is shifted."""
    rows, columns, _, channels = kernel.shape
    down, right = shifts.dilation
    for i in range(rows):
        for j in range(columns):
            weight = lax.slice(kernel, (i, j, 0, 0), (i + 1, j + 1, 1, channels))
            yield weight, i * down, j * right


@traced_once
def _sum_of_shifted(shifts: Shifts, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_ij k[i, j] ⊙ x shifted by i and j."""
    height, width = shifts.size(image, kernel)
    batch, _, _, channels = image.shape
    image, kernel = as_wide(image, kernel)
    padded = shifts.padded(image)
    y = add_up(
        weight * lax.slice(padded, (0, i, j, 0), (batch, i + height, j + width, channels))
        for weight, i, j in _taps(shifts, kernel)
    )
    return y.astype(shifts.dtype)


@traced_once
def _sum_of_padded(shifts: Shifts, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a sum of padded images, of which the transpose is a sum of shifted ones."""
    image, kernel = as_wide(image, kernel)
    below, beside = shifts.reach(kernel)
    zero, unpadded = jnp.zeros((), image.dtype), (0, 0, 0)
    full = add_up(
        lax.pad(weight * image, zero, (unpadded, (below - i, i, 0), (beside - j, j, 0), unpadded))
        for weight, i, j in _taps(shifts, kernel)
    )
    return shifts.crop(full, kernel)


@traced_once
def _sum_in_loop(shifts: Shifts, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same in a loop, of which the transpose for the kernel sums one tap after another."""
    height, width = shifts.size(image, kernel)
    batch, _, _, channels = image.shape
    image, kernel = as_wide(image, kernel)
    padded = shifts.padded(image)
    columns, (down, right) = kernel.shape[1], shifts.dilation
    weights = kernel.reshape(-1, 1, 1, 1, channels)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add_tap(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        n, weight = tap
        start = (0, n // columns * down, n % columns * right, 0)
        shifted = lax.dynamic_slice(padded, start, (batch, height, width, channels))
        return total + weight * shifted, None

    like = lax.slice(padded, (0, 0, 0, 0), (batch, height, width, channels))
    zeros = zeros_like_result(like, kernel)
    y, _ = lax.scan(add_tap, zeros, (jnp.arange(len(weights)), weights))
    return y.astype(shifts.dtype)
