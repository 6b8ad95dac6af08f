"""Checks shared by the vision mechanisms."""

from typing import Any

import jax

from flax_attn._checks import as_floating, check_maps


def as_image(function: str, x: jax.Array, **maps: Any) -> jax.Array:
    """The image as a JAX array; raise unless it is floating point `[*B, H, W, C]`, no axis empty.

    Also raise unless each of `maps`, the maps and functions given to the mechanism, is callable.
    """
    check_maps(function, **maps)
    x = as_floating(function, "x", x)
    if x.ndim < 3 or any(size < 1 for size in x.shape[-3:]):
        raise ValueError(
            f"{function}: x must be [*B, H, W, C] with H, W, C at least 1, got {list(x.shape)}."
        )
    return x


def check_returned(
    function: str, map_name: str, returned: jax.Array, shape: tuple[int, ...], letters: str
) -> None:
    """Raise unless a map returned the shape that the equation needs."""
    if returned.shape != shape:
        raise ValueError(
            f"{function}: {map_name} must return {letters} = {list(shape)}, "
            f"got {list(returned.shape)}."
        )


def check_reduced(function: str, hidden: jax.Array) -> None:
    """Raise if the reduction leaves no channel: the gate would be constant."""
    if hidden.shape[-1] == 0:
        raise ValueError(
            f"{function}: reduce must keep at least 1 channel, got 0. Use a smaller reduction."
        )
