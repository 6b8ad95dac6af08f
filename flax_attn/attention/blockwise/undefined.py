"""NaN for queries that see something that is not finite, without O(T · S) memory."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._core.finite import not_finite
from flax_attn.attention._core.problem import KEY, QUERY, VALUE
from flax_attn.attention.blockwise.schedule import Schedule
from flax_attn.attention.blockwise.storage import Storage, Stored
from flax_attn.attention.blockwise.sweep import Equations, sweep
from flax_attn.attention.blockwise.tile import Rows, Tile

Pair = tuple[jax.Array, jax.Array]
StoredPair = tuple[Stored, Stored]


def mark_undefined(storage: Storage, schedule: Schedule, output: jax.Array, lse: jax.Array) -> Pair:
    """Output and LSE with NaN where a query sees what is not finite.

    The dot products read 0 in its place.

    A key or a query makes output and LSE undefined, a value only the output. Where everything is
    finite, which is nearly always, this costs one pass over the inputs.

    Args:
      storage: The arrays.
      schedule: The tiles.
      output: `[B, T, N, Dv]`.
      lse: `[B, T, N, 1]`.
    """
    if not storage.problem.may_hide:
        return output, lse
    bad = {i: not_finite(storage.leaves[i].whole()) for i in (QUERY, KEY, VALUE)}
    anything = jnp.any(jnp.stack([jnp.any(flags) for flags in bad.values()]))
    no = jnp.zeros(lse.shape, bool)

    def find() -> Pair:
        of_scores, of_values = sweep(Undefined(bad), storage, schedule)
        return of_scores.whole(), of_values.whole()

    of_scores, of_values = lax.cond(anything, find, lambda: (no, no))
    output = jnp.where(of_scores | of_values, jnp.nan, output)
    return output, jnp.where(of_scores, jnp.nan, lse)


class Undefined(Equations[StoredPair, jax.Array, Pair]):
    """Which queries have undefined scores, and which see a value that is not finite.

    Args:
      bad: Which queries, keys and values are not finite `[B, T, N]`, `[B, S, K]`.
    """

    def __init__(self, bad: dict[int, jax.Array]) -> None:
        self.query = Stored(bad[QUERY][..., None], "btnd", jnp.dtype(bool))
        self.key, self.value = (Stored(bad[i], "bsk", jnp.dtype(bool)) for i in (KEY, VALUE))

    def zeros(self) -> StoredPair:
        """All flags are False."""
        no = Stored(jnp.zeros_like(self.query.values), "btnd", jnp.dtype(bool))
        return no, no

    def begin(self, rows: Rows, carry: StoredPair) -> tuple[jax.Array, Pair]:
        """All flags of the block are False."""
        del carry
        no = jnp.zeros((*rows.shape, 1), bool)
        return rows.take(self.query), (no, no)

    def step(self, tile: Tile, block: jax.Array, state: Pair) -> Pair:
        """A query that sees a bad key, or is bad and sees any; one that sees a bad value."""
        of_scores, of_values = state
        zeros = jnp.zeros(
            (*tile.rows.shape, tile.place.keys.size), tile.storage.problem.scores_dtype
        )
        visible = ~jnp.isneginf(tile.mask(tile.modify(zeros, {})))  # modifiers hide by −∞
        key, value = (
            jnp.swapaxes(flags.tile(tile.place), 1, 2)[:, :, None, :]
            for flags in (self.key, self.value)
        )
        sees_key, sees_value, sees_any = (
            jnp.any(found, axis=-1, keepdims=True)
            for found in (visible & key, visible & value, visible)
        )
        return of_scores | sees_key | (block & sees_any), of_values | sees_value

    def finish(self, rows: Rows, block: jax.Array, state: Pair, carry: StoredPair) -> StoredPair:
        """Write both."""
        del block
        return rows.write(carry[0], state[0]), rows.write(carry[1], state[1])
