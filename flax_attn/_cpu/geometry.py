"""What the rewrites of convolutions share."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._jax import vary_together

once_for_a_size = functools.partial(jax.jit, static_argnums=0)  # however many layers have it


class Geometry(NamedTuple):
    """What a convolution with steps of 1 is, besides its image and kernel."""

    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    dtype: jnp.dtype  # of the result

    def reach(self, kernel: jax.Array) -> list[int]:
        """How far the last tap is from the first, in rows and in columns."""
        return [d * (k - 1) for d, k in zip(self.dilation, kernel.shape[:2], strict=True)]

    def padded(self, image: jax.Array) -> jax.Array:
        return jnp.pad(image, ((0, 0), *self.padding, (0, 0)))

    def size(self, image: jax.Array, kernel: jax.Array) -> list[int]:
        """Height and width of the result."""
        spaces = zip(image.shape[1:3], self.padding, self.reach(kernel), strict=True)
        return [n + before + after - reach for n, (before, after), reach in spaces]

    def cut(self, whole: jax.Array, kernel: jax.Array) -> jax.Array:
        """The result out of one that sees every part of the image, `[B, H, W, O]`."""
        edges = [
            (before - reach, after - reach, 0)
            for (before, after), reach in zip(self.padding, self.reach(kernel), strict=True)
        ]
        result = lax.pad(whole, jnp.zeros((), whole.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
        return result.astype(self.dtype)


def as_wide(*arrays: jax.Array) -> list[jax.Array]:
    return [a.astype(statistics_dtype(a.dtype)) for a in arrays]


def zeros(like: jax.Array, weights: jax.Array) -> jax.Array:
    """Zeros to begin a loop with, on whose devices they lie and differ as its result does."""
    return vary_together([jnp.zeros_like(like), like, weights])[0]


def total(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)
