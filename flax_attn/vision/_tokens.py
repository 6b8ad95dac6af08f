"""Shared code of the mechanisms that attend to the places of an image as tokens."""

import jax
import jax.numpy as jnp

from flax_attn.vision._checks import check_returned
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._windows import reshape_places


def as_tokens(image: jax.Array) -> jax.Array:
    """The places as tokens of one head: `[*B, H, W, D]` -> `[*B, H·W, 1, D]`."""
    *batch, height, width, _ = image.shape
    return reshape_places(image, len(batch), height * width, 1)


def as_places(tokens: jax.Array, image: jax.Array) -> jax.Array:
    """Tokens of one head as the places of an image: `[*B, H·W, 1, D]` -> `[*B, H, W, D]`."""
    return reshape_places(tokens, tokens.ndim - 3, *image.shape[-3:-1])


def check_projected(
    function: str, map_name: str, projected: jax.Array, image: jax.Array, letters: str
) -> None:
    """Raise unless a map keeps the places of an image, and at least one channel."""
    check_returned(function, map_name, projected, (*image.shape[:-1], projected.shape[-1]), letters)
    if projected.shape[-1] == 0:
        raise ValueError(f"{function}: {map_name} must keep at least 1 channel, got 0.")


def add_scaled(function: str, x: jax.Array, gamma: jax.Array, branch: jax.Array) -> jax.Array:
    """γ · branch + x, in the dtype of x; γ is one number."""
    if jnp.shape(gamma) != ():
        raise ValueError(f"{function}: gamma must be one number, [], got {list(jnp.shape(gamma))}.")
    return apply_gate(branch.astype(x.dtype), jnp.asarray(gamma, x.dtype)) + x
