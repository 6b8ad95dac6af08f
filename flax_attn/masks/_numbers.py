"""Integer parameters of masks: one for all heads or one per query head, and possibly traced."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from flax_attn._integers import LARGEST, known, saturate
from flax_attn._record import Record

Number = int | np.integer | np.ndarray | Int[Array, "..."]


def as_number(name: str, value: Any, minimum: int | None, fix: str) -> Any:
    """Check an integer or integers `[N]`, and clamp values beyond int32 to its ends.

    Args:
      name: Name for error messages, such as `"Window: left"`.
      value: The argument. Of a traced value only the dtype is checked.
      minimum: The smallest allowed number; None for any.
      fix: The last sentence of error messages.

    Returns:
      The number as it was given: of Python, NumPy or JAX.
    """
    dtype = getattr(value, "dtype", None)
    integer = type(value) is int if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    if not integer:
        kind = type(value).__name__ if dtype is None else dtype
        raise TypeError(f"{name} must be an integer, or integers [N], got {kind}. {fix}")
    # Clamping changes no mask: positions are at most 2³⁰ − 1, and their differences twice that.
    bounded = max(-LARGEST, min(value, LARGEST)) if dtype is None else saturate(value)
    numbers = None if minimum is None else known(bounded)
    if numbers is not None and (numbers < minimum).any():
        raise ValueError(f"{name} must be at least {minimum}, got {np.min(value)}. {fix}")
    return bounded


def per_head(name: str, value: Number, q: Record) -> int | Int[Array, "..."]:
    """The number of each query head, in a shape that broadcasts against the records.

    Args:
      name: Name for error messages, such as `"Window: left"`.
      value: One number, or numbers `[N]` that are indexed by `q.head_ids`.
      q: The record of the queries.
    """
    if isinstance(value, int):
        return value
    number = saturate(jnp.asarray(value))
    if number.ndim == 0:
        return number
    # If heads are split over devices, there are more numbers than heads on this device.
    if number.ndim > 1 or number.shape[0] < q.head_ids.size:
        raise ValueError(
            f"{name} must be one number, or one per query head [N] = [{q.head_ids.size}], got "
            f"{list(number.shape)}."
        )
    return number[q.head_ids]


def scalar(name: str, value: Number, fix: str) -> int | Int[Array, ""]:
    """A number that must be the same for all heads."""
    if isinstance(value, int):
        return value
    number = saturate(jnp.asarray(value))
    if number.ndim:
        raise ValueError(f"{name} must be one number, got {list(number.shape)}. {fix}")
    return number
