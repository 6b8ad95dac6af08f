"""Numbers and arrays of modifiers: checked when given, looked up by head when used."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def as_leaf(name: str, value: Any, shapes: dict[int, str]) -> Any:
    """The value as a leaf that has gradients: a Python float, or a float array.

    Args:
      name: What messages call it: `"Scale: factor"`.
      value: A number or an array.
      shapes: The ranks that are allowed, and what messages call a shape of that rank.

    Returns:
      The value; a whole number as a float, a list as an array.
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
            f"{name} must be floating point, so that it has gradients, got {value.dtype}. "
            f"Convert it: .astype(jnp.float32)."
        )
    if value.ndim not in shapes:
        raise ValueError(f"{name} must be {wanted}, got {list(value.shape)}.")
    return value


def of_heads(
    name: str, leaf: Any, head_ids: Int[Array, "..."], dtype: jnp.dtype
) -> Float[Array, "..."]:
    """A leaf `[N]` at each head, in the shape of `head_ids`; a single number as it is."""
    leaf = jnp.asarray(leaf).astype(dtype)
    if leaf.ndim == 0:
        return leaf
    check_heads(name, leaf.shape[-1], head_ids)
    return take(leaf, head_ids)


def check_heads(name: str, num_heads: int, head_ids: Int[Array, "..."]) -> None:
    """Raise if a head's number is known and there is no such head."""
    if not isinstance(head_ids, jax.core.Tracer) and head_ids.size:
        last = int(np.max(head_ids))
        if last >= num_heads:
            raise ValueError(
                f"{name} must have one number for each head [N], at least {last + 1} as heads are "
                f"numbered up to {last}, got {num_heads}."
            )


def take(values: Float[Array, "..."], *index: Int[Array, "..."]) -> Float[Array, "..."]:
    """Elements of an array; NaN, and not another head's number, where it has none."""
    whole = tuple(jnp.asarray(x).astype(jnp.int32) for x in index)
    return values.at[whole].get(mode="fill", fill_value=jnp.nan)


def holds(condition: Callable[[Any], Any], value: Any) -> bool:
    """Whether a number fulfils the condition; True where it is traced, and not known yet."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, int | float | jax.Array):
        return True
    return bool(condition(value))
