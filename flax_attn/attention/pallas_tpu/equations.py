"""The equations of the TPU kernels, on tiles of one head.

Forward (FlashAttention, algorithm 1), over the blocks of keys of a block of queries:

    S = scale · Q Kᵀ, modified and masked
    m' = max(m, rowmax S),  ℓ' = e^(m − m') ℓ + rowsum e^(S − m'),  A' = e^(m − m') A + e^(S − m') V
    O = A / ℓ,  LSE = m + log ℓ

Tangent, with P = e^(S − LSE):

    Ṡ = scale · (Q̇ Kᵀ + Q K̇ᵀ) through the modifiers,  r = rowsum(P ∘ Ṡ),  A = (P ∘ Ṡ) V + P V̇

Transpose (FlashAttention, algorithm 4), with δ = rowsum(dO ∘ O) − c and c the cotangent of the LSE:

    dS = P ∘ (dO Vᵀ − δ), back through the modifiers
    dQ = scale · dS K                          over the blocks of keys of a block of queries
    dK = scale · dSᵀ Q,  dV = Pᵀ dO            over the blocks of queries of a block of keys

References:
  Dao, Fu, Ermon, Rudra, Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention with
  IO-Awareness", NeurIPS 2022, arXiv:2205.14135.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._staged.pairs import Given
from flax_attn.attention.pallas_tpu.grid import LANES, Operand, Result, Rows
from flax_attn.attention.pallas_tpu.laid import Laid, name_of_given, whole_lanes
from flax_attn.attention.pallas_tpu.sweep import Equations, Refs
from flax_attn.attention.pallas_tpu.tile import Tile

Operands = dict[str, Operand]


class OfScores(Equations):
    """Equations that begin with the scores.

    Args:
      laid: The arrays.
      given: What the pairs of the problem are given.
    """

    def __init__(self, laid: Laid, given: Sequence[jax.Array]) -> None:
        self.laid, self.problem, self.pairs = laid, laid.problem, laid.pairs
        self.normalizer = laid.problem.normalizer
        self._given = list(given)
        self.rows_of_tile = laid.grid(self.rows).tile[0]

    def operands(self) -> Operands:
        """Q, K, V, the factor of the scores, and what the pairs are given."""
        whole = self.laid.whole
        found = {
            "q": self.laid.queries(whole.query.values),
            "k": self.laid.matrix(whole.key.values, "bskd"),
            "v": self.laid.matrix(whole.value.values, "bskd"),
            **self.laid.given(self._given),
        }
        factor = self.laid.factor
        if isinstance(factor, jax.Array):
            found["factor"] = Operand(factor.astype(jnp.float32).reshape(1, 1), "bn")
        return found

    @property
    def widths(self) -> tuple[int, int]:
        """Features of queries and of values."""
        return tuple(x.values.shape[-1] for x in (self.problem.query, self.problem.value))

    def dot(self, a: jax.Array, b: jax.Array, *, over: tuple[int, int]) -> jax.Array:
        """The product of two matrices over an axis of each, in float32."""
        dimensions = (((over[0],), (over[1],)), ((), ()))
        return lax.dot_general(
            a, b, dimensions, precision=self.problem.precision, preferred_element_type=jnp.float32
        )

    def products(self, tile: Tile, query: jax.Array, key: jax.Array) -> jax.Array:
        """scale · Q Kᵀ, or its transpose if the rows of the tile are keys."""
        rows, columns = (query, key) if self.rows is Rows.QUERIES else (key, query)
        found = self.dot(rows, columns, over=(1, 1))
        factor = self.laid.factor
        if factor is None:
            return found
        return found * (tile.over_pairs("factor") if isinstance(factor, jax.Array) else factor)

    def given(self, tile: Tile) -> list[Any]:
        """What the pairs of a tile are given, as tiles and numbers."""
        return [_read(tile, i, given) for i, given in enumerate(self.pairs.given)]

    def spread(self, value: Any, like: jax.Array) -> jax.Array:
        """A number or a tile as a tile."""
        return jnp.broadcast_to(value, like.shape)

    def modify(
        self, tile: Tile, raw: jax.Array, given: list[Any], moved: Mapping[int, jax.Array]
    ) -> jax.Array:
        """The scores after the modifiers, with some of what they are given replaced."""
        if self.problem.score_mod is None:
            return raw
        given = [moved.get(i, x) for i, x in enumerate(given)]
        masked = tile.masked and self.problem.may_hide
        return self.pairs.modified(raw, given, masked=masked)

    def mask(self, tile: Tile, scores: jax.Array, given: list[Any]) -> jax.Array:
        """The scores, −∞ for invisible pairs."""
        if not tile.masked:
            return scores
        if self.problem.may_hide:
            scores = jnp.where(self.pairs.visible(given, scores), scores, -jnp.inf)
        length_k = self.problem.sizes[1]
        if length_k != self.laid.lengths[1]:
            scores = jnp.where(tile.key_numbers() < length_k, scores, -jnp.inf)
        return scores

    def zero_if_hidden(self, tile: Tile, derivative: jax.Array, scores: jax.Array) -> jax.Array:
        """The derivative, 0 where the score is −∞: what multiplies the weight may be infinite."""
        if not tile.masked and self.problem.score_mod is None:
            return derivative
        return jnp.where(scores == -jnp.inf, 0, derivative)


class Forward(OfScores):
    """O and LSE."""

    def results(self) -> dict[str, Result]:
        """O and LSE."""
        rows, features = rows_and_features(self.laid)
        return {
            "o": Result((*rows, features), "bntd", self.problem.output_dtype),
            "lse": Result(rows, "bnt", jnp.float32),
        }

    def sums(self) -> dict[str, tuple[int, int]]:
        """A, and the statistics of the normaliser, each on all lanes."""
        _, features = rows_and_features(self.laid)
        shape = self.rows_of_tile, LANES
        return {"a": (shape[0], features), **dict.fromkeys(self._statistics, shape)}

    def features(self) -> int:
        """Those of Q Kᵀ and P V."""
        return sum(self.widths)

    @property
    def _statistics(self) -> list[str]:
        start = self.normalizer.begin((1,), jnp.dtype(jnp.float32))
        return [f"statistic {i}" for i in range(len(start))]

    def begin(self, refs: Refs) -> None:
        """m = −∞, ℓ = 0, A = 0."""
        start = self.normalizer.begin((1,), jnp.dtype(jnp.float32))
        for name, x in zip(self._statistics, start, strict=True):
            refs[name][...] = jnp.broadcast_to(x[:, None], refs[name].shape)
        refs["a"][...] = jnp.zeros_like(refs["a"])

    def step(self, tile: Tile) -> None:
        """m', ℓ' and A'."""
        refs, given = tile.refs, self.given(tile)
        value = tile.matrix("v")
        raw = self.products(tile, tile.matrix("q"), tile.matrix("k"))
        s = self.mask(tile, self.modify(tile, raw, given, {}), given)
        before = tuple(of_each_row(refs[name]) for name in self._statistics)
        statistics, factor, p = self.normalizer.extend(before, s)
        for name, x in zip(self._statistics, statistics, strict=True):
            refs[name][...] = jnp.broadcast_to(x[:, None], refs[name].shape)
        a = refs["a"][...] if factor is None else refs["a"][...] * factor[:, None]
        p = self.pairs.dropped(p, given).astype(value.dtype)
        refs["a"][...] = a + self.dot(p, value, over=(1, 0))

    def finish(self, refs: Refs) -> None:
        """O = A / ℓ, LSE = m + log ℓ."""
        divisor, lse = self.normalizer.finish(tuple(of_each_row(refs[x]) for x in self._statistics))
        o = refs["a"][...] if divisor is None else refs["a"][...] / divisor[:, None]
        refs["o"][...] = o.astype(refs["o"].dtype)
        refs["lse"][...] = as_row(lse)


def rows_and_features(laid: Laid) -> tuple[tuple[int, int, int], int]:
    """B, N and T of results, and the features of the values."""
    grid = laid.grid(Rows.QUERIES)
    features = laid.problem.value.values.shape[-1]
    return (grid.batch, grid.heads[0], grid.lengths[0]), whole_lanes(features)


def of_each_row(ref: Any) -> jax.Array:
    """A vector `[rows]` that is stored on all lanes.

    The maximum over the lanes is on all lanes again. The first lane alone is moved to the others
    wherever it meets a tile: the kernel then has a fifth more instructions (libtpu 0.0.52, v5e).
    """
    return jnp.max(ref[...], axis=1)


def as_row(column: jax.Array) -> jax.Array:
    """A vector `[rows]` as `[1, rows]`."""
    wide = jnp.broadcast_to(column[:, None], (column.shape[0], LANES))
    return jnp.transpose(wide, (1, 0))[:1]


def _read(tile: Tile, number: int, given: Given) -> Any:
    """One of the arrays that the pairs are given, in its dtype."""
    values = tile.over_pairs(name_of_given(number))
    if given.dtype == jnp.bool_:
        return values.astype(jnp.int32) != 0
    return values.astype(given.dtype)
