"""The pairs of a problem on tiles: which are visible, the modified scores, the kept weights."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_attn._jax import NO_MESH
from flax_attn.attention._core.batch import (
    abstract,
    abstract_with_one_batch_axis,
    with_one_batch_axis,
)
from flax_attn.attention._core.problem import Problem, Structure
from flax_attn.attention._staged.distances import Place, looked_up, over_distances, tables_of
from flax_attn.attention._staged.program import Depends, NotStagedError, Program
from flax_attn.attention.dropout import kept_share


class Given(NamedTuple):
    """An array that XLA computes, of which a tile reads its part.

    Attributes:
      depends: What it depends on; PAIR for an array over pairs that the user gave.
      dtype: Its dtype.
      by_distance: Whether it is an array over distances in place of pairs, see `distances`.
    """

    depends: Depends
    dtype: jnp.dtype
    by_distance: bool = False

    @property
    def is_float(self) -> bool:
        """Whether it can have a derivative."""
        return jnp.issubdtype(self.dtype, jnp.floating)

    @property
    def is_over_pairs(self) -> bool:
        """Whether a tile reads it as an array over pairs."""
        return self.depends == Depends.PAIR and not self.by_distance


@dataclasses.dataclass(frozen=True)
class Moved:
    """A leaf of a problem without its array: whether its derivative is asked for."""

    is_moved: bool


class Pairs:
    """The pairs of a problem, for tiles.

    A tile is any array of pairs of one head: rows may be queries and columns keys, or the reverse.

    Attributes:
      given: What a tile reads. The methods take it as a list of tiles, and numbers for HEAD.
      may_hide: Whether some pair may be invisible.
      drops: Whether weights are dropped.

    Args:
      problem: The problem, with arrays or abstract values as leaves.

    Raises:
      NotStagedError: If a mask or modifier does something that no tile can. The message says what.
    """

    def __init__(self, problem: Problem) -> None:
        tables = tables_of(problem)
        if tables and not problem.in_order:
            raise NotStagedError(
                f"{type(tables[0]).__name__} looks a bias up by distance, which takes positions "
                f"that are known to count from 0. Leave out query_coords and key_coords."
            )
        self.may_hide, self.drops = problem.may_hide, problem.drop is not None
        merged = abstract_with_one_batch_axis(problem)
        scores = jax.ShapeDtypeStruct(merged.scores_shape, merged.scores_dtype)
        leaves, self._structure = Structure.of(_without_tables(merged))
        depends = [Depends.PAIR]
        for axes, x in zip(self._structure.letters, leaves, strict=True):
            depends.append(Depends.PAIR if isinstance(x, Place) else _depends_on(axes, x.shape))
        # The values stand for arrays that no tile reads whole, and that have no part in it.
        places = [i for i, x in enumerate(leaves, 1) if isinstance(x, Place)]
        arguments: list[Any] = [scores, *(scores if isinstance(x, Place) else x for x in leaves)]
        self._program = Program(self._results, arguments, depends, raw=[0, *places])
        self.given = [Given(x.depends, x.dtype) for x in self._program.given]
        self.given += [Given(Depends.PAIR, scores.dtype, by_distance=True) for _ in tables]
        leaves, structure = Structure.of(abstract(problem))
        jax.eval_shape(lambda x: self.outside(structure.problem(x), (0, 1)), leaves)  # it checks

    def _results(self, scores: jax.Array, *leaves: jax.Array) -> list[jax.Array]:
        """What tiles may ask for, for all pairs; `scores` are the weights for `dropped`."""
        problem = self._structure.problem(leaves)
        visible = problem.visible() if problem.may_hide else None
        found = {"plain": problem.modified(scores, None)}
        if visible is not None:
            found |= {"visible": visible, "masked": problem.modified(scores, visible)}
        if problem.drop is not None:
            share = kept_share(problem.drop.rate, scores.dtype)
            found["dropped"] = jnp.where(problem.kept_weights(), scores / share, 0)
        self._names = list(found)
        return list(found.values())

    @property
    def dtypes(self) -> set[jnp.dtype]:
        """The dtypes of what tiles read and compute."""
        return self._program.dtypes_inside

    # ---- outside

    def outside(self, problem: Problem, distances: tuple[int, int]) -> list[jax.Array]:
        """The arrays `given`, of the whole problem. Their derivatives are JAX's.

        Args:
          problem: The problem.
          distances: The first distance and the number of distances of arrays over distances.

        Returns:
          Arrays `[B | 1, N | 1, T | 1, S | 1]`, and `[B | 1, N | 1, 1, distances]`. The batch axes
          are merged.
        """
        merged = with_one_batch_axis(problem)
        leaves, _ = Structure.of(_without_tables(merged))
        found = self._program.outside([None, *leaves])
        found += [over_distances(table, merged, *distances) for table in tables_of(merged)]
        return [_with_four_axes(x, given) for x, given in zip(found, self.given, strict=True)]

    def moved_by(self, problem: Problem, leaves: Sequence[int]) -> list[int]:
        """Which of the arrays `given` have a derivative with respect to some leaves."""
        count = Structure.of(problem)[1].num_leaves
        marked = Structure.of(problem)[1].problem([Moved(i in leaves) for i in range(count)])
        kept, _ = Structure.of(_without_tables(marked))
        inputs = [i for i, x in enumerate(kept, 1) if isinstance(x, Moved) and x.is_moved]
        moved = self._program.depending_on(inputs)
        moved += [any(x.is_moved for x in jax.tree.leaves(x)) for x in tables_of(marked)]
        return [i for i, is_moved in enumerate(moved) if is_moved and self.given[i].is_float]

    # ---- in a tile

    def visible(self, given: Sequence[Any], like: jax.Array) -> jax.Array:
        """Which pairs of a tile are visible, in the shape of another tile."""
        return self._inside("visible", like, given)

    def modified(self, scores: jax.Array, given: Sequence[Any], *, masked: bool) -> jax.Array:
        """The scores of a tile after the modifiers.

        Args:
          scores: The scores.
          given: The parts of the arrays `given`.
          masked: Whether some pairs may be invisible. Their scores do not reach the modifiers.
        """
        return self._inside("masked" if masked else "plain", scores, given)

    def dropped(self, weights: jax.Array, given: Sequence[Any]) -> jax.Array:
        """The weights of a tile after dropout."""
        return self._inside("dropped", weights, given) if self.drops else weights

    def _inside(self, name: str, scores: jax.Array, given: Sequence[Any]) -> jax.Array:
        count = len(self._program.given)
        results = [self._names.index(name)]
        (found,) = self._program.inside(results, [scores, *given[count:]], given[:count])
        return found


@functools.lru_cache(maxsize=256)
def _cached(structure: Structure, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Pairs:
    # With a mesh, `jax.set_mesh`, JAX also traces how arrays are split. A tile has no part in it.
    with jax.sharding.use_abstract_mesh(NO_MESH):
        return Pairs(structure.problem(leaves))


def pairs_of(problem: Problem) -> Pairs:
    """The pairs of a problem, traced once for each structure.

    Raises:
      NotStagedError: See `Pairs`.
    """
    leaves, structure = Structure.of(problem)
    return _cached(structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))


def _without_tables(problem: Problem) -> Problem:
    """The problem of the pairs alone."""
    return dataclasses.replace(problem, score_mod=looked_up(problem.score_mod), plan=None)


def _depends_on(axes: str, shape: tuple[int, ...]) -> Depends:
    """What a leaf depends on. An axis of size 1 is the same for all."""
    sizes = dict(zip(axes, shape, strict=False))
    found = Depends.HEAD
    if sizes.get("t", 1) > 1:
        found |= Depends.QUERY
    if sizes.get("s", 1) > 1:
        found |= Depends.KEY
    return found


def _with_four_axes(array: jax.Array, given: Given) -> jax.Array:
    """`[B | 1, N | 1, T | 1, S | 1]`, whose axes of tokens are those it depends on."""
    shape = (1,) * (4 - array.ndim) + array.shape
    is_by_query, is_by_key = (bool(given.depends & x) for x in (Depends.QUERY, Depends.KEY))
    fits = len(shape) == 4 and (is_by_query or shape[2] == 1) and (is_by_key or shape[3] == 1)
    if not fits:
        raise NotStagedError(f"an array {list(array.shape)} belongs to no token and no head.")
    return jnp.reshape(array, shape)
