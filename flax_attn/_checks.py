"""Checks shared by the public functions: each raises with the numbers and the fix."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

Map = Callable[[jax.Array], jax.Array]
Activation = Callable[[jax.Array], jax.Array]


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


def as_integer(function: str, name: str, number: int) -> int:
    """The number as a Python integer; `TypeError` if it is not a whole number."""
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{function}: {name} must be one whole number, got {number!r}.") from None


def check_features(module: str, x: jax.Array, features: int) -> None:
    """Raise unless the module was made for the width of `x`."""
    if x.shape[-1] != features:
        raise ValueError(
            f"{module}: the input must have the {features} channels that the module was made for, "
            f"got {list(x.shape)}."
        )


def reduced_features(
    module: str, features: int, reduction: int, hidden_features: int | None, least: int = 0
) -> int:
    """R = max(least, C // reduction), or as given; a width of 0 raises."""
    if hidden_features is not None:
        if hidden_features < 1:
            raise ValueError(
                f"{module}: hidden_features must be at least 1, got {hidden_features}."
            )
        return hidden_features
    if reduction < 1:
        raise ValueError(f"{module}: reduction must be at least 1, got {reduction}.")
    reduced = max(least, features // reduction)
    if reduced == 0:
        raise ValueError(
            f"{module}: C // reduction must be at least 1, got {features} // {reduction} = 0. "
            f"Use a smaller reduction, or hidden_features=1."
        )
    return reduced


def check_odd(module: str, kernel_size: int) -> int:
    """The kernel size, if it has a centre."""
    size = as_integer(module, "kernel_size", kernel_size)
    if size < 1 or size % 2 == 0:
        raise ValueError(
            f"{module}: kernel_size must be odd and at least 1, got {size}. Use {max(size, 0) + 1}."
        )
    return size
