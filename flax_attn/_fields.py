"""Checks of the arguments of `Coords`: lengths, fields, indices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from flax_attn._checks import check_at_least
from flax_attn._integers import as_bound, as_ids, integers, known


def as_length(owner: str, name: str, length: Any) -> Any:
    """Check a number of tokens, which is symbolic in `jax.export` with symbolic shapes."""
    return length if is_symbolic_dim(length) else check_at_least(owner, name, length, 0)


def as_positions(positions: Any) -> Any:
    """Convert positions to int32, and clamp those beyond it."""
    if positions is None or isinstance(positions, str):
        kind = type(positions).__name__
        raise TypeError(f"Coords: positions must be integers, got {kind}. Write Coords.arange(T).")
    fix = "Write positions.astype(jnp.int32). Fractions, such as times, are a feature."
    return as_bound("Coords: positions", positions, fix)


def as_segments(segment_ids: Any) -> Any:
    """Convert segment ids to int32; known ones must fit it."""
    fix = "Number the sequences from 0, as np.unique(segment_ids, return_inverse=True)[1] does."
    return as_ids("Coords: segment_ids", segment_ids, fix)


def as_booleans(name: str, values: Any) -> Any:
    """Convert to an array, and check that it is boolean."""
    if not hasattr(values, "dtype"):
        values = jnp.asarray(values)
    if values.dtype != jnp.bool_:
        raise TypeError(
            f"Coords: {name} must be boolean, True for valid tokens, got {values.dtype}. "
            f"Write {name}.astype(bool)."
        )
    return jnp.asarray(values)


def as_feature(name: str, values: Any) -> Any:
    """Convert to an array. Integers of a dtype that JAX does not have must fit int32."""
    given = values
    if not hasattr(values, "dtype"):
        values = np.asarray(values)
    if isinstance(values, jax.Array):
        return values
    if values.dtype.kind in "OUS" and not _is_whole(values):
        raise TypeError(f"Coords: {name} must be an array of numbers, got {type(given).__name__}.")
    if values.dtype.kind == "O" or (
        values.dtype.kind in "iu" and jax.dtypes.canonicalize_dtype(values.dtype) != values.dtype
    ):
        fix = f"Number ids from 0, or clip bounds: np.clip({name}, -2**31, 2**31 - 1)."
        return as_ids(f"Coords: {name}", values, fix)
    return values if values is given else jnp.asarray(values)


def _is_whole(values: np.ndarray) -> bool:
    return all(type(x) is int for x in values.flat)


def check_index(index: Any, length: int) -> Any:
    """Check an index: a slice, or an array of integers, which must be in range if known."""
    if isinstance(index, slice):
        return index
    if isinstance(index, int | np.integer):
        raise TypeError(
            f"Coords: an index must keep the token axis, got {index}. Write coords[[{index}]]."
        )
    if isinstance(index, list):
        index = np.asarray(index, None if index else np.int32)
    if not hasattr(index, "dtype"):
        raise TypeError(
            f"Coords: an index must be a slice or an array of integers, got {index!r}. To index "
            f"other axes write jax.tree.map(lambda x: x[...], coords)."
        )
    if index.dtype == jnp.bool_:
        raise TypeError(
            "Coords: an index must be integers, got booleans, which select an unknown number of "
            "tokens. Write coords[jnp.flatnonzero(index)], or mark tokens in Coords.valid."
        )
    numbers = known(integers("Coords: an index", index))
    if index.ndim != 1:
        raise ValueError(f"Coords: an index must be [X], got {list(index.shape)}.")
    if (
        numbers is not None
        and numbers.size
        and not (-length <= numbers.min() and numbers.max() < length)
    ):
        raise IndexError(
            f"Coords: an index must lie in 0 ... {length - 1}, got {numbers.min()} ... "
            f"{numbers.max()}."
        )
    return index
