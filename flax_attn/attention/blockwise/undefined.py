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

    The dot products have read 0 for it.

    A key or a query makes output and LSE undefined, a value only the output. Where everything is
    finite, which is nearly always, this costs one pass over the inputs.

    Args:
      storage: The arrays.
      schedule: The tiles.
      output: `[B, T, N, Dv]`.
      lse: `[B, T, N, 1]`.
    """
    if not storage.problem.masked:
        return output, lse
    bad = {i: not_finite(storage.leaves[i].whole()) for i in (QUERY, KEY, VALUE)}
    anything = jnp.any(jnp.stack([jnp.any(flags) for flags in bad.values()]))
    no = jnp.zeros(lse.shape, bool)

    def find() -> Pair:
        stored = Stored(no, "btnd", no.dtype)
        of_scores, of_values = sweep(Undefined(bad), storage, schedule, (stored, stored))
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

    def begin(self, rows: Rows, carry: StoredPair) -> tuple[jax.Array, Pair]:
        """No row is known to be undefined."""
        del carry
        no = jnp.zeros((*rows.shape, 1), bool)
        return rows.take(self.query), (no, no)

    def step(self, tile: Tile, known: jax.Array, state: Pair) -> Pair:
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
        return of_scores | sees_key | (known & sees_any), of_values | sees_value

    def finish(self, rows: Rows, known: jax.Array, state: Pair, carry: StoredPair) -> StoredPair:
        """Write both."""
        del known
        return rows.write(carry[0], state[0]), rows.write(carry[1], state[1])
