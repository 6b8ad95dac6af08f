"""Parameters of score modifiers: checks, and lookup by head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def as_leaf(name: str, value: Any, shapes: dict[int, str]) -> Any:
    """Convert a parameter to a leaf that has gradients: a Python float, or a float array.

    Args:
      name: Name for error messages, such as `"Scale: factor"`.
      value: A number or an array.
      shapes: The allowed ranks, and how error messages name a shape of each rank.

    Returns:
      The value; an integer as a float, a list as an array.
    """
    wanted = " or ".join(shapes.values())
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 not in shapes:
            raise ValueError(f"{name} must be {wanted}, got the number {value}.")
        return float(value)
    if isinstance(value, list | tuple):
        value = jnp.asarray(value, jnp.result_type(float))
    if isinstance(value, np.ndarray | np.generic):
        value = jnp.asarray(value)
    if not hasattr(value, "dtype"):
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}.")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating point, as it has gradients, got {value.dtype}. Convert it: "
            f".astype(jnp.float32)."
        )
    if value.ndim not in shapes:
        raise ValueError(f"{name} must be {wanted}, got {list(value.shape)}.")
    return value


def of_heads(
    name: str, leaf: Any, head_ids: Int[Array, "..."], dtype: jnp.dtype
) -> Float[Array, "..."]:
    """The value of a leaf `[N]` for each head, in the shape of `head_ids`; one number as it is."""
    leaf = jnp.asarray(leaf).astype(dtype)
    if leaf.ndim == 0:
        return leaf
    check_heads(name, leaf.shape[-1], head_ids)
    return take(leaf, head_ids)


def check_heads(name: str, num_heads: int, head_ids: Int[Array, "..."]) -> None:
    """Raise if a head id is known and is outside of the parameters."""
    if not isinstance(head_ids, jax.core.Tracer) and head_ids.size:
        last = int(np.max(head_ids))
        if last >= num_heads:
            raise ValueError(
                f"{name} must have one number per head [N], at least {last + 1} as head ids go up "
                f"to {last}, got {num_heads}."
            )


def take(values: Float[Array, "..."], *index: Int[Array, "..."]) -> Float[Array, "..."]:
    """Elements of an array; NaN for an index outside of it."""
    whole = tuple(jnp.asarray(x).astype(jnp.int32) for x in index)
    return values.at[whole].get(mode="fill", fill_value=jnp.nan)


def may_hold(condition: Callable[[Any], Any], value: Any) -> bool:
    """True if a number fulfils the condition, or is traced and not known."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, int | float | jax.Array):
        return True
    return bool(condition(value))
