"""Checks of a cache that is given to attention."""

from typing import Any

import jax

from flax_attn.coords import Coords


def check_cache(function: str, cache: Any, **given: Any) -> None:
    """Raise if it is no cache, or something is given beside it, which it stands for."""
    if not hasattr(cache, "next_coords"):
        raise TypeError(
            f"{function}: cache must be a cache of flax_attn.caches, got {type(cache).__name__}. "
            f"A call with a cache returns a pair: out, cache = ..."
        )
    for name in [name for name, x in given.items() if x is not None]:
        raise ValueError(
            f"{function}: {name} must not be given with a cache, which holds the keys, the values "
            f"and their coordinates. Give the new tokens' query_coords only."
        )


def check_batch(function: str, name: str, inputs: jax.Array, coords: Coords) -> None:
    """Raise unless inputs `[*B, T, M]` have the batch axes of the cache's next coordinates."""
    if coords.positions.shape != inputs.shape[:-1]:
        raise ValueError(
            f"{function}: {name} must have the batch axes of the cache, *B = "
            f"{list(coords.positions.shape[:-1])}, got {list(inputs.shape)}."
        )


def check_rotary(function: str, rotary: Any) -> None:
    """Raise if the rotation changes with the length so far, which a cache cannot follow."""
    if getattr(rotary, "reads_length", False):
        raise ValueError(
            f"{function}: rotary must not depend on the length so far with a cache, whose keys are "
            f"rotated already, got {rotary!r}. Give the length of the whole generation: "
            f"Rotary(..., length=...)."
        )
