"""The numbers of a mask: one for all heads, or one per query head; traced, or known and checked."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from flax_attn._integers import LARGEST, known, saturate
from flax_attn._record import Record

Number = int | np.integer | np.ndarray | Int[Array, "..."]


def as_number(name: str, value: Any, minimum: int | None, fix: str) -> Any:
    """An integer, or integers `[N]`, of at least `minimum`; what is beyond int32 is its end.

    Args:
      name: `"Window: left"`, for the message.
      value: What was given. Traced values are checked for their dtype only.
      minimum: The smallest possible number; None for any.
      fix: The last sentence of the message.

    Returns:
      The number, of the same kind: of Python, NumPy or JAX.
    """
    dtype = getattr(value, "dtype", None)
    integer = type(value) is int if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    if not integer:
        kind = type(value).__name__ if dtype is None else dtype
        raise TypeError(f"{name} must be an integer, or integers [N], got {kind}. {fix}")
    # The ends of int32 are open: positions are at most 2³⁰ − 1, and their differences twice that.
    bounded = max(-LARGEST, min(value, LARGEST)) if dtype is None else saturate(value)
    numbers = None if minimum is None else known(bounded)
    if numbers is not None and (numbers < minimum).any():
        raise ValueError(f"{name} must be at least {minimum}, got {np.min(value)}. {fix}")
    return bounded


def per_head(name: str, value: Number, q: Record) -> int | Int[Array, "..."]:
    """A number that broadcasts against the records: itself, or that of each query head.

    Args:
      name: `"Window: left"`, for the message.
      value: A number, or `[N]`, looked up by `q.head_ids`.
      q: The queries.
    """
    if isinstance(value, int):
        return value
    number = saturate(jnp.asarray(value))
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
    number = saturate(jnp.asarray(value))
    if number.ndim:
        raise ValueError(f"{name} must be one number, got {list(number.shape)}. {fix}")
    return number
