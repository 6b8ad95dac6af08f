"""Resizing images to a given height and width, as PyTorch does."""

import jax
import jax.numpy as jnp


def resize_bilinear(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Bilinear resizing without antialiasing: `[*B, h, w, C]` -> `[*B, H, W, C]`.

    As in PyTorch with `align_corners=False`. JAX's default antialiases when it shrinks.
    """
    if x.shape[-3:-1] == size:
        return x
    shape = (*x.shape[:-3], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def resize_nearest(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Nearest neighbours: `[*B, h, w, C]` -> `[*B, H, W, C]`, where row i is row ⌊i · h / H⌋.

    As PyTorch's default. JAX's "nearest" measures from the centres of places, which differs if the
    ratio is not a whole number.
    """
    for axis, new in zip((-3, -2), size, strict=True):
        old = x.shape[axis]
        if old != new:
            x = jnp.take(x, jnp.arange(new) * old // new, axis=axis)
    return x
