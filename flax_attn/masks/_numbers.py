"""The numbers of a mask: one for all heads, or one per query head; traced, or known and checked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flax_attn._record import Record

Number = int | np.integer | np.ndarray | Int[Array, "..."]


def check_number(name: str, value: Any, minimum: int | None, fix: str) -> None:
    """Raise unless a number, or an array of numbers, is an integer of at least `minimum`.

    Args:
      name: `"Window: left"`, for the message.
      value: What was given. Traced values are checked for their dtype only.
      minimum: The smallest possible number; None for any.
      fix: The last sentence of the message.
    """
    dtype = getattr(value, "dtype", None)
    integer = type(value) is int if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    if not integer:
        kind = type(value).__name__ if dtype is None else dtype
        raise TypeError(f"{name} must be an integer, or integers [N], got {kind}. {fix}")
    numbers = known(value)
    if minimum is not None and numbers is not None and (numbers < minimum).any():
        raise ValueError(f"{name} must be at least {minimum}, got {numbers.min()}. {fix}")


def known(value: Any) -> np.ndarray | None:
    """The numbers on the host, or None where they are traced or lie on other processes."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(jax.device_get(value))


def per_head(name: str, value: Number, q: Record) -> int | Int[Array, "..."]:
    """A number that broadcasts against the records: itself, or that of each query head.

    Args:
      name: `"Window: left"`, for the message.
      value: A number, or `[N]`, looked up by `q.head_ids`.
      q: The queries.
    """
    if isinstance(value, int):
        return value
    number = jnp.asarray(value, jnp.int32)
    if number.ndim == 0:
        return number
    # Heads may be spread over devices: there are then more numbers than heads here.
    if number.ndim > 1 or number.shape[0] < q.head_ids.size:
        raise ValueError(
            f"{name} must be one number, or one per query head [N] = [{q.head_ids.size}], got "
            f"{list(number.shape)}."
        )
    return number[q.head_ids]


def scalar(name: str, value: Number, fix: str) -> int | Int[Array, ""]:
    """A number that is the same for all heads."""
    if isinstance(value, int):
        return value
    number = jnp.asarray(value, jnp.int32)
    if number.ndim:
        raise ValueError(f"{name} must be one number, got {list(number.shape)}. {fix}")
    return number


def everywhere(value: bool, q: Record, k: Record) -> Bool[Array, "..."]:
    """The same answer for every pair of tokens."""
    return jnp.full(jnp.broadcast_shapes(q.positions.shape, k.positions.shape), value)
