"""Position terms that depend on the query, as in BoTNet and HaloNet."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_attn._checks import broadcast_like, statistics_dtype
from flax_attn.coords import Coords

Size = tuple[int, int]


def check_tables(
    function: str, tables: tuple[jax.Array, jax.Array], keys: Size, letters: tuple[str, str]
) -> None:
    """Raise unless the tables are `[2 · rows − 1, D]` and `[2 · columns − 1, D]` for the keys."""
    names = ("relative_height", "relative_width")
    for name, table, size, letter in zip(names, tables, keys, letters, strict=True):
        if table.ndim != 2 or table.shape[0] != 2 * size - 1:
            raise ValueError(
                f"{function}: {name} must be [2 {letter} − 1, D] = [{2 * size - 1}, D], got "
                f"{list(table.shape)}. A table serves one {letter}: resample it."
            )


def with_relative_positions(
    function: str,
    query: Float[Array, "*B T N D"],
    key: Float[Array, "*B S K D"],
    tables: tuple[jax.Array, jax.Array],
    queries: Size,
    keys: Size,
    *,
    scaled: bool,
) -> tuple[Float[Array, "*B T N E"], Float[Array, "*B S K E"]]:
    """Queries and keys whose dot product contains the position terms.

    q·k + q·r_h[Δy] + q·r_w[Δx] = [q; q R_h; q R_w] · [k; e_y; e_x]

    with the unit vectors e_y, e_x of the key's row and column. This adds no T × S array in any
    implementation of attention: memory is O((T + S)(D + rows + columns)).

    Args:
      function: The public function, for error messages.
      query: Queries on a grid of `queries` = (height, width), row by row.
      key: Keys on a grid of `keys`, row by row.
      tables: r_h, r_w; query row i and key row j use row j − i + height of keys − 1.
      queries: Height and width of the queries' grid.
      keys: Height and width of the keys' grid.
      scaled: If True, the position terms are scaled by 1/√D like q·k.

    Returns:
      Queries and keys of E = D + rows + columns, to be scaled by 1/√D.
    """
    *batch, _, heads, head_dim = query.shape
    for name, table in zip(("relative_height", "relative_width"), tables, strict=True):
        if table.shape[1] != head_dim:
            raise ValueError(
                f"{function}: {name} must have rows of the queries' D = {head_dim} features, "
                f"got {list(table.shape)}."
            )
    grid = query.reshape(*batch, *queries, heads, head_dim)
    positions = jnp.concatenate(
        [
            _products("...yxnd,yrd->...yxnr", grid, tables[0], queries[0], keys[0]),
            _products("...yxnd,xrd->...yxnr", grid, tables[1], queries[1], keys[1]),
        ],
        axis=-1,
    )
    positions = positions * (1.0 if scaled else math.sqrt(head_dim))
    positions = positions.reshape(*query.shape[:-1], sum(keys)).astype(query.dtype)

    places = Coords.grid(*keys).features
    units = jnp.concatenate(
        [
            jax.nn.one_hot(places["row"], keys[0], dtype=key.dtype),
            jax.nn.one_hot(places["col"], keys[1], dtype=key.dtype),
        ],
        axis=-1,
    )
    units = broadcast_like(units[:, None], key, sum(keys))
    return (
        jnp.concatenate([query, positions], axis=-1),
        jnp.concatenate([key, units], axis=-1),
    )


def _products(
    subscripts: str, grid: jax.Array, table: jax.Array, queries: int, keys: int
) -> jax.Array:
    """q·r of each query with each row, or each column, of keys; the offset is key − query."""
    offsets = np.arange(keys) - np.arange(queries)[:, None] + keys - 1
    vectors = table.astype(grid.dtype)[offsets]
    dtype = statistics_dtype(grid.dtype)
    return jnp.einsum(subscripts, grid, vectors, preferred_element_type=dtype)
