"""Biases that are looked up by distance, without a lookup in a tile.

Where positions count from 0, a bias b(j − i) is the same along each diagonal. XLA looks it up once
for each of the T + S distances. A tile of pairs then needs one stretch of this array, of which row
i is a part that is shifted by i.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._pytree import pytree
from flax_attn._record import Record
from flax_attn.attention._core.problem import Problem
from flax_attn.scores import ScoreMod


@runtime_checkable
class Table(Protocol):
    """A score modifier that adds a bias that depends on distance and head only."""

    def of_distance(self, distances: jax.Array, head_ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The bias for each distance j − i and head."""


@pytree
class Looked(ScoreMod):
    """A table whose biases are looked up already.

    Attributes:
      bias: The biases of the pairs.
    """

    bias: Any

    def __call__(self, scores: jax.Array, q: Record, k: Record, head_ids: jax.Array) -> jax.Array:
        """Add them."""
        del q, k, head_ids
        return scores + self.bias


class Place:
    """A leaf that stands for the bias of a table."""


def _is_table(part: Any) -> bool:
    return isinstance(part, Table)


def tables_of(problem: Problem) -> list[Table]:
    """The tables among the score modifiers, in order."""
    return list(filter(_is_table, jax.tree.leaves(problem.score_mod, is_leaf=_is_table)))


def looked_up(score_mod: ScoreMod | None) -> ScoreMod | None:
    """A composition of modifiers with `Looked(Place())` for each table."""
    return jax.tree.map(
        lambda part: Looked(Place()) if _is_table(part) else part, score_mod, is_leaf=_is_table
    )


def over_distances(table: Table, problem: Problem, first: int, count: int) -> jax.Array:
    """The biases of `count` distances from `first` on `[B | 1, N | 1, 1, count]`."""
    distances = first + lax.broadcasted_iota(jnp.int32, (1, 1, 1, count), 3)
    head_ids = problem.head_ids.values[..., None, None]
    return table.of_distance(distances, head_ids, problem.scores_dtype)
