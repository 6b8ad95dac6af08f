"""Learned positional encodings."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flax_attn._integers import as_bound
from flax_attn.coords import Coords


def learned(positions: Int[Array, "*T"], table: Float[Array, "P M"]) -> Float[Array, "*T M"]:
    """Look up one learned vector for each position.

    E[p] = table[p]

    Args:
      positions: Positions in tokens `[*T]`, each in `0 ... P − 1`.
      table: One row for each position `[P, M]`.

    Returns:
      The encoding `[*T, M]`, in the dtype of the table. Under `jit` positions cannot be checked: a
      position outside the table gives NaN, not the nearest row.

    Raises:
      TypeError: If the positions are not integers.
      ValueError: If the table is not `[P, M]`, or a known position lies outside it.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import positions
      >>> positions.learned(jnp.arange(3), jnp.eye(4)).shape
      (3, 4)

    References:
      Gehring, Auli, Grangier, Yarats, Dauphin, "Convolutional Sequence to Sequence Learning",
      ICML 2017, arXiv:1705.03122, section 3.1.
    """
    if isinstance(positions, Coords):
        raise TypeError("learned: positions must be integers, got Coords. Write coords.positions.")
    positions = as_bound("learned: positions", positions)
    table = jnp.asarray(table)
    if table.ndim != 2:
        raise ValueError(f"learned: table must be [P, M], got {list(table.shape)}.")
    length = table.shape[0]
    if not isinstance(positions, jax.core.Tracer) and positions.size:
        first, last = int(np.min(positions)), int(np.max(positions))
        if first < 0 or last >= length:
            raise ValueError(
                f"learned: positions must lie in 0 ... P - 1 = {length - 1}, "
                f"got {first} ... {last}. Make the table longer."
            )
    # A negative index would count from the end, so it is moved beyond the end, which gives NaN.
    inside = jnp.where(positions < 0, length, positions)
    return table.at[inside].get(mode="fill", fill_value=jnp.nan)
