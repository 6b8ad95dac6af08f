"""Biases that depend only on the distance of two positions, looked up with few gathers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn.scores._leaves import take

Rows = Callable[[Int[Array, "..."]], Int[Array, "..."]]


def by_distance(
    table: Float[Array, "R N"],
    rows: Rows,
    ends: tuple[int, int],
    q_positions: Int[Array, "*#B t 1"],
    k_positions: Int[Array, "*#B 1 s"],
    head_ids: Int[Array, "*#B 1 1"],
) -> Float[Array, "*B t s"]:
    """b_ij = table[rows(j − i), head].

    On a CPU, a gather of all t · s biases costs half as much as the attention around it, and the
    sum of their gradients costs more. In most tiles, positions are consecutive. Then only the t + s
    different distances are looked up, and reshapes copy them to their diagonals. In tiles where
    every distance is beyond the ends of the table, one bias per head is looked up.

    Args:
      table: Biases by row and head.
      rows: Elementwise function from distances to rows.
      ends: The distances (first, last) at and beyond which the row does not change.
      q_positions: Positions of the queries.
      k_positions: Positions of the keys.
      head_ids: Global head ids.

    Returns:
      The biases, in the table's dtype.
    """

    def look_up(table: Array, distances: Array, head_ids: Array) -> Array:
        return take(table, rows(distances), head_ids)

    def scattered(table: Array, q: Array, k: Array, head_ids: Array) -> Array:
        return look_up(table, k - q, head_ids)

    def contiguous(table: Array, q: Array, k: Array, head_ids: Array) -> Array:
        return _diagonals(
            lambda offsets: look_up(table, k[..., :1] - q[..., :1, :] + offsets, head_ids),
            q.shape[-2],
            k.shape[-1],
            q.ndim,
        )

    def far(table: Array, q: Array, k: Array, head_ids: Array) -> Array:
        bias = look_up(table, k[..., :1] - q[..., :1, :], head_ids)
        return jnp.broadcast_to(bias, (*bias.shape[:-2], q.shape[-2], k.shape[-1]))

    first, last = ends
    q, k = q_positions, k_positions
    lengths = q.shape[-2], k.shape[-1]
    if not all(isinstance(n, int) for n in lengths) or q.size == 0 or k.size == 0:
        return scattered(table, q, k, head_ids)
    is_far = (jnp.min(k) - jnp.max(q) >= last) | (jnp.max(k) - jnp.min(q) <= first)
    is_consecutive = jnp.all(jnp.diff(q, axis=-2) == 1) & jnp.all(jnp.diff(k, axis=-1) == 1)
    branch = jnp.where(is_far, 2, is_consecutive.astype(jnp.int32))
    # A conditional saves the residuals of all of its branches, and `scattered` would save the row
    # of each score. With `checkpoint` only the arguments are saved.
    branches = [jax.checkpoint(f, prevent_cse=False) for f in (scattered, contiguous, far)]
    return jax.lax.switch(branch, branches, table, q, k, head_ids)


def _diagonals(
    line: Callable[[Int[Array, "..."]], Float[Array, "*B 1 P"]], t: int, s: int, ndim: int
) -> Float[Array, "*B t s"]:
    """x_ij = line(j − i), by slices and reshapes, whose transposes need no scatter.

    The first b rows are made with all columns that any row needs. Every further b rows are a slice
    of them. Eight slices cost half as much as one step for all rows, with gradients.
    """
    b = -(-t // _SLICES)
    starts = range(0, t, b)
    reach = starts[-1]
    # A sequence of period P that is read in rows of length P − 1 moves to the right by one from row
    # to row. P is a power of two, which makes the index arithmetic cheap.
    width = reach + s
    period = 1 << (width + b - 1).bit_length()
    offsets = jnp.arange(period, dtype=jnp.int32)
    offsets = jnp.where(offsets < width, offsets, offsets - period) - reach
    values = line(offsets.reshape((1,) * (ndim - 1) + (period,)))
    lead = values.shape[:-2]
    flat = jnp.broadcast_to(values, (*lead, b, period)).reshape(*lead, b * period)
    rows = flat[..., : b * (period - 1)].reshape(*lead, b, period - 1)
    slices = [rows[..., : t - start, reach - start : reach - start + s] for start in starts]
    return jnp.concatenate(slices, axis=-2)


_SLICES = 8
