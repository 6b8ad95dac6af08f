"""Checks of integers, and their conversion to int32 without wrapping around.

JAX silently wraps an integer that does not fit its dtype. So integers that may be wider than int32
are converted here. A *bound* (a side of a window, a length, a size) beyond int32 is clamped to the
ends of int32. An *id* (a segment, a head) beyond int32 is refused if its value is known.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LARGEST = 2**31 - 1


def known(value: Any) -> np.ndarray | None:
    """The value as an array of NumPy; None if it is traced, or on devices of other processes."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(jax.device_get(value))


def integers(name: str, value: Any, fix: str = "") -> Any:
    """The value as an array of NumPy or JAX, if it holds integers. Its dtype is kept.

    Args:
      name: Name for error messages, such as `"Coords: positions"`.
      value: An array, or numbers in lists.
      fix: The last sentence of error messages.

    Raises:
      TypeError: If they are not integers.
    """
    if not hasattr(value, "dtype"):
        try:
            value = np.asarray(value)
        except ValueError:
            raise TypeError(f"{name} must be integers, got lists of unequal lengths.") from None
        if value.size == 0:
            value = value.astype(np.int32)
        if value.dtype.kind == "O" and all(type(x) is int for x in value.flat):
            return value  # Python integers beyond 64 bits
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {value.dtype}.{fix and ' ' + fix}")
    return value


def as_bound(name: str, value: Any, fix: str = "") -> jax.Array:
    """Convert integers to int32, and clamp those beyond it.

    Args:
      name: Name for error messages.
      value: An array, or numbers in lists.
      fix: The last sentence of error messages.

    Raises:
      TypeError: If they are not integers.
    """
    return jnp.asarray(saturate(integers(name, value, fix)))


def as_ids(name: str, value: Any, fix: str = "Number them from 0.") -> jax.Array:
    """Convert integers to int32. Traced integers of a wider dtype keep it.

    Args:
      name: Name for error messages.
      value: An array, or numbers in lists.
      fix: The last sentence of error messages.

    Raises:
      TypeError: If they are not integers.
      ValueError: If a known integer does not fit int32.
    """
    value = integers(name, value)
    if not _is_wide(value.dtype):
        return jnp.asarray(value, jnp.int32)
    numbers = known(value)
    if numbers is None:
        return value
    if numbers.size and (numbers.max() > LARGEST or numbers.min() < -LARGEST - 1):
        raise ValueError(
            f"{name} must fit int32, −2³¹ ... 2³¹ − 1, got {numbers.min()} ... {numbers.max()}. "
            f"{fix}"
        )
    on_host = isinstance(value, np.ndarray | np.generic)
    return jnp.asarray(numbers.astype(np.int32)) if on_host else value.astype(jnp.int32)


def saturate(value: Any, dtype: Any = np.int32) -> Any:
    """Convert integers to a narrower dtype, and clamp those beyond it. NumPy stays NumPy."""
    limits = np.iinfo(dtype)
    if isinstance(value, np.ndarray | np.generic):
        own = value.dtype
        if not np.can_cast(own, dtype):
            low, high = (int(limits.min), int(limits.max))
            clipped = np.minimum(value, high) if _is_unsigned(own) else np.clip(value, low, high)
            value = np.asarray(clipped)
        return value.astype(dtype)[()]
    own = np.dtype(value.dtype)
    if not np.can_cast(own, dtype):
        value = lax.min(value, jnp.full_like(value, limits.max))
        if not _is_unsigned(own):
            value = lax.max(value, jnp.full_like(value, limits.min))
    return value.astype(dtype)


def comparable(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two arrays in a dtype in which they can be compared, if both are integers."""
    if a.dtype == b.dtype or not all(jnp.issubdtype(x.dtype, jnp.integer) for x in (a, b)):
        return a, b
    wide = jax.config.jax_enable_x64 and any(_is_wide(x.dtype) for x in (a, b))
    dtype = np.int64 if wide else np.int32
    return saturate(a, dtype), saturate(b, dtype)


def _is_wide(dtype: Any) -> bool:
    return not np.can_cast(dtype, np.int32)


def _is_unsigned(dtype: np.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.unsignedinteger)
