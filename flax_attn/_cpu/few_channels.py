"""Convolutions among very few channels as sums of shifted images."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.geometry import Geometry, as_wide, once_for_a_size, total, zeros


@once_for_a_size
def shifts(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_ijc k_ijco ⊙ x_c shifted by i and j."""
    height, width = geometry.size(image, kernel)
    rows, columns, channels, out = kernel.shape
    wide, weights = as_wide(image, kernel)
    planes = jnp.moveaxis(geometry.padded(wide), -1, 0)
    down, right = geometry.dilation

    def of_row(i: jax.Array | int) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(planes, i * down, height, axis=2)
        row = lax.dynamic_index_in_dim(weights, i, keepdims=False)
        shifted = [
            (j, c, lax.slice_in_dim(plane, j * right, j * right + width, axis=2))
            for c, plane in enumerate(_unstack(seen, channels))
            for j in range(columns)
        ]
        return jnp.stack(
            [total(_entry(row, j, c, o) * x for j, c, x in shifted) for o in range(out)]
        )

    nothing = zeros(jnp.stack([planes[0, :, :height, :width]] * out), weights)
    summed = lax.fori_loop(0, rows, lambda i, so_far: so_far + of_row(i), nothing)
    return jnp.moveaxis(summed, 0, -1).astype(geometry.dtype)


@once_for_a_size
def pieces(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a sum of padded images, of which JAX's transpose is a sum of shifted ones."""
    rows, columns, channels, out = kernel.shape
    wide, weights = as_wide(image, kernel)
    planes = _unstack(jnp.moveaxis(wide, -1, 0), channels)
    (down, right), (below, beside) = geometry.dilation, geometry.reach(kernel)
    room = jnp.pad(planes[0], ((0, 0), (0, below), (0, beside)))
    nothing = zeros(jnp.stack([room] * out), weights)
    zero, whole = jnp.zeros((), wide.dtype), (0, 0, 0)

    def piece(weight: jax.Array, plane: jax.Array, j: int) -> jax.Array:
        left = right * j
        return lax.pad(weight * plane, zero, (whole, whole, (beside - left, left, 0)))

    @jax.checkpoint
    def add_row(so_far: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        row = lax.dynamic_index_in_dim(weights, i, keepdims=False)
        pieces = [
            total(
                piece(_entry(row, j, c, o), plane, j)
                for c, plane in enumerate(planes)
                for j in range(columns)
            )
            for o in range(out)
        ]
        start = below - down * i
        return (
            so_far + lax.dynamic_update_slice_in_dim(nothing, jnp.stack(pieces), start, axis=2),
            None,
        )

    summed, _ = lax.scan(add_row, nothing, jnp.arange(rows))
    return geometry.cut(jnp.moveaxis(summed, 0, -1), kernel)


def _unstack(stacked: jax.Array, count: int) -> list[jax.Array]:
    return [lax.index_in_dim(stacked, i, keepdims=False) for i in range(count)]


def _entry(weights: jax.Array, *place: int) -> jax.Array:
    """One weight for a plane (as `weights[place]` is, which JAX traces slowly)."""
    return lax.reshape(lax.slice(weights, place, [i + 1 for i in place]), (1, 1, 1))
