"""Biases that depend on the distance between positions only, looked up without a gather."""

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

    Looking up each of the t · s numbers costs half as much as the attention around it, and adding
    up their gradients more than that (on a CPU). So where positions count up one by one, as they do
    in most tiles, only the t + s distances are looked up, and moved to their diagonals by reshapes.

    Args:
      table: Numbers per row and head.
      rows: From distances to row numbers, elementwise.
      ends: The distances (first, last) at and beyond which all rows are the same.
      q_positions: Positions of queries.
      k_positions: Positions of keys.
      head_ids: Numbers of heads.

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
    by_one = jnp.all(jnp.diff(q, axis=-2) == 1) & jnp.all(jnp.diff(k, axis=-1) == 1)
    branch = jnp.where(is_far, 2, by_one.astype(jnp.int32))
    # Each branch keeps its arguments only: a conditional keeps for its gradients what any of its
    # branches does, and all would write the row numbers of each score.
    branches = [jax.checkpoint(f, prevent_cse=False) for f in (scattered, contiguous, far)]
    return jax.lax.switch(branch, branches, table, q, k, head_ids)


def _diagonals(
    line: Callable[[Int[Array, "..."]], Float[Array, "*B 1 P"]], t: int, s: int, ndim: int
) -> Float[Array, "*B t s"]:
    """x_ij = line(j − i), by slices and reshapes, whose transposes add up without a scatter.

    The first b rows reach over all columns that any row needs; every b further rows are a slice of
    them. (Eight slices cost half as much, gradients included, as to move all rows in one step.)
    """
    b = -(-t // _SLICES)
    starts = range(0, t, b)
    reach = starts[-1]
    # A sequence of period P, read in rows of P − 1, moves by one to the right from row to row. P is
    # a power of two so that finding one's place in it is cheap.
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
