"""Checks shared by the public functions: each raises with the numbers and the fix."""

import jax
import jax.numpy as jnp


def statistics_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of pooled statistics, scores and accumulators: at least float32."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)


def as_floating(function: str, name: str, array: jax.Array) -> jax.Array:
    """The array, of NumPy or JAX, as one of JAX; `TypeError` unless it is real floating point."""
    if not hasattr(array, "dtype"):
        raise TypeError(
            f"{function}: {name} must be an array, got {type(array).__name__}. "
            f"Wrap it: jnp.asarray({name})."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"{function}: {name} must be floating point, got {array.dtype}. "
            f"Convert it: {name}.astype(jnp.float32)."
        )
    return jnp.asarray(array)


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to exactly `target`."""
    if len(shape) > len(target):
        return False
    trailing = target[len(target) - len(shape) :]
    return all(size in (1, full) for size, full in zip(shape, trailing, strict=True))


def expand_rank(array: jax.Array, ndim: int) -> jax.Array:
    """Prepend axes of size 1 until `array` has `ndim` axes."""
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)
