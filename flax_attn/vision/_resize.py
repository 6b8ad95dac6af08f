"""Resizing images to a given height and width, shared by the vision mechanisms."""

import jax
import jax.numpy as jnp


def resize_bilinear(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """`[*B, h, w, C]` -> `[*B, H, W, C]` between the centres of places.

    Without antialiasing, as in PyTorch (`align_corners=False`): JAX's default blurs what it
    shrinks.
    """
    if x.shape[-3:-1] == size:
        return x
    shape = (*x.shape[:-3], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def resize_nearest(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """`[*B, h, w, C]` -> `[*B, H, W, C]`, of which row i is row ⌊i · h / H⌋.

    As PyTorch's default; JAX's "nearest" looks from the centres of places instead, and differs
    where the ratio is not a whole number.
    """
    for axis, new in zip((-3, -2), size, strict=True):
        old = x.shape[axis]
        if old != new:
            x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
    return x
