"""The equations of the derivatives: the tangent, and its transpose in two sweeps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_attn.attention._core.problem import KEY, QUERY, VALUE
from flax_attn.attention._staged.program import Depends
from flax_attn.attention.pallas_tpu.equations import (
    OfScores,
    Operands,
    as_row,
    rows_and_features,
)
from flax_attn.attention.pallas_tpu.grid import LANES, Operand, Result, Rows
from flax_attn.attention.pallas_tpu.laid import Laid, whole_lanes
from flax_attn.attention.pallas_tpu.sweep import Refs
from flax_attn.attention.pallas_tpu.tile import Tile


class GivenRows(NamedTuple):
    """What is known of each query: output, LSE, and what belongs to them.

    Attributes:
      lse: LSE `[*B, T, N]`; +∞ where a row is not defined, which makes its weights 0.
      defined: Which rows see a key, and are not NaN; None = all.
    """

    lse: jax.Array
    defined: jax.Array | None

    @classmethod
    def of(cls, laid: Laid, output: jax.Array, lse: jax.Array) -> "GivenRows":
        """From the results of the forward pass."""
        if not laid.problem.may_hide:
            return cls(lse, None)
        defined = ~jnp.isnan(output[..., 0]) & jnp.isfinite(lse)
        return cls(jnp.where(defined, lse, jnp.inf), defined)

    def where_defined(self, x: jax.Array) -> jax.Array:
        """`[*B, T, N]` or `[*B, T, N, D]`, 0 where a row is not defined."""
        if self.defined is None:
            return x
        defined = self.defined if x.ndim == self.defined.ndim else self.defined[..., None]
        return jnp.where(defined, x, 0)


class Tangent(OfScores):
    """A and r along tangents of some leaves.

    Args:
      laid: The arrays.
      given: What the pairs are given.
      rows: What is known of the queries.
      changes: Tangents of query, key and value, by the number of the leaf.
      moved: Tangents of what the pairs are given, by number.
      d_scale: The tangent of the scale; None = 0.
    """

    def __init__(
        self,
        laid: Laid,
        given: Sequence[jax.Array],
        rows: GivenRows,
        changes: Mapping[int, jax.Array],
        moved: Mapping[int, jax.Array],
        d_scale: jax.Array | None,
    ) -> None:
        super().__init__(laid, given)
        self._rows, self._changes, self._moved, self._d_scale = rows, changes, moved, d_scale

    def operands(self) -> Operands:
        """Those of the scores, the LSE, and the tangents."""
        found = super().operands() | {"lse": self.laid.vector(self._rows.lse, jnp.inf)}
        if QUERY in self._changes:
            found["dq"] = self.laid.queries(self._changes[QUERY])
        if KEY in self._changes:
            found["dk"] = self.laid.matrix(self._changes[KEY], "bskd")
        if VALUE in self._changes:
            found["dv"] = self.laid.matrix(self._changes[VALUE], "bskd")
        if self._d_scale is not None:
            found["d scale"] = Operand(self._d_scale.astype(jnp.float32).reshape(1, 1), "bn")
        for i, values in self._moved.items():
            found[_tangent_of(i)] = self.laid.given_operand(self.pairs.given[i], values)
        return found

    def results(self) -> dict[str, Result]:
        """A and r."""
        rows, features = rows_and_features(self.laid)
        return {
            "change": Result((*rows, features), "bntd", jnp.float32),
            "change of lse": Result(rows, "bnt", jnp.float32),
        }

    def features(self) -> int:
        """Those of Q Kᵀ, Q̇ Kᵀ, Q K̇ᵀ, (P ∘ Ṡ) V and P V̇, as far as there are tangents."""
        d, dv = self.widths
        of_scores = [i for i in (QUERY, KEY) if i in self._changes]
        return d * (1 + len(of_scores)) + dv * (2 if VALUE in self._changes else 1)

    def sums(self) -> dict[str, tuple[int, int]]:
        """A, and r on all lanes."""
        _, features = rows_and_features(self.laid)
        return {"a": (self.rows_of_tile, features), "r": (self.rows_of_tile, LANES)}

    def begin(self, refs: Refs) -> None:
        """A = 0, r = 0."""
        refs["a"][...] = jnp.zeros_like(refs["a"])
        refs["r"][...] = jnp.zeros_like(refs["r"])

    def step(self, tile: Tile) -> None:
        """A' = A + (P ∘ Ṡ) V + P V̇, r' = r + rowsum(P ∘ Ṡ)."""
        refs, given = tile.refs, self.given(tile)
        value = tile.matrix("v")
        raw = self.products(tile, tile.matrix("q"), tile.matrix("k"))
        spots = {i: self.spread(given[i], raw) for i in self._moved}
        changes = {i: self.spread(tile.over_pairs(_tangent_of(i)), raw) for i in self._moved}
        changes = {i: x.astype(spots[i].dtype) for i, x in changes.items()}
        s, ds = jax.jvp(
            lambda raw, moved: self.modify(tile, raw, given, moved),
            (raw, spots),
            (self._change_of_products(tile, raw), changes),
        )
        s = self.mask(tile, s, given)
        p = self.normalizer.weights(s, tile.over_pairs("lse"))
        dp = self.zero_if_hidden(tile, self.normalizer.slope(p, s) * ds, s)
        refs["r"][...] += jnp.broadcast_to(jnp.sum(dp, axis=1)[:, None], refs["r"].shape)
        a = self.dot(self.pairs.dropped(dp, given).astype(value.dtype), value, over=(1, 0))
        if VALUE in self._changes:
            p = self.pairs.dropped(p, given).astype(value.dtype)
            a = a + self.dot(p, tile.matrix("dv"), over=(1, 0))
        refs["a"][...] += a

    def _change_of_products(self, tile: Tile, raw: jax.Array) -> jax.Array:
        """scale · (Q̇ Kᵀ + Q K̇ᵀ) + scalė · Q Kᵀ."""
        query, key = tile.matrix("q"), tile.matrix("k")
        change = jnp.zeros_like(raw)
        if QUERY in self._changes:
            change = change + self.products(tile, tile.matrix("dq"), key)
        if KEY in self._changes:
            change = change + self.products(tile, query, tile.matrix("dk"))
        if self._d_scale is not None:
            change = change + self.dot(query, key, over=(1, 1)) * tile.over_pairs("d scale")
        return change

    def finish(self, refs: Refs) -> None:
        """Write A and r."""
        refs["change"][...] = refs["a"][...]
        refs["change of lse"][...] = as_row(refs["r"][:, 0])


class _Transpose(OfScores):
    """The cotangents of some leaves, given those of output and LSE.

    Args:
      laid: The arrays.
      given: What the pairs are given.
      rows: What is known of the queries.
      d_output: dO `[*B, T, N, Dv]`.
      delta: δ `[*B, T, N]`.
      moved: The numbers of what the pairs are given and that has a cotangent.
    """

    def __init__(
        self,
        laid: Laid,
        given: Sequence[jax.Array],
        rows: GivenRows,
        d_output: jax.Array,
        delta: jax.Array,
        moved: Sequence[int],
    ) -> None:
        super().__init__(laid, given)
        self._rows, self._d_output, self._delta, self._moved = rows, d_output, delta, moved

    def operands(self) -> Operands:
        """Those of the scores, the LSE, dO and δ."""
        return super().operands() | {
            "lse": self.laid.vector(self._rows.lse, jnp.inf),
            "do": self.laid.matrix(self._d_output, "btnd"),
            "delta": self.laid.vector(self._delta, 0),
        }

    def cotangents(self, tile: Tile) -> tuple[jax.Array, jax.Array, dict[int, jax.Array]]:
        """Dropped weights, dS of the raw scores, and cotangents of what the pairs are given."""
        given = self.given(tile)
        do, value = tile.matrix("do"), tile.matrix("v")
        raw = self.products(tile, tile.matrix("q"), tile.matrix("k"))
        spots = {i: self.spread(given[i], raw) for i in self._moved}
        s, pull_back = jax.vjp(lambda raw, moved: self.modify(tile, raw, given, moved), raw, spots)
        s = self.mask(tile, s, given)
        p = self.normalizer.weights(s, tile.over_pairs("lse"))
        pair = (do, value) if self.rows is Rows.QUERIES else (value, do)
        dp = self.pairs.dropped(self.dot(*pair, over=(1, 1)), given)
        centred = dp - tile.over_pairs("delta") if self.normalizer.coupled else dp
        ds = self.zero_if_hidden(tile, self.normalizer.slope(p, s) * centred, s)
        d_raw, d_given = pull_back(ds)
        return self.pairs.dropped(p, given), d_raw, d_given


class OfQueries(_Transpose):
    """dQ, and sums over keys of the cotangents of what the pairs are given.

    Args:
      *arguments: See `_Transpose`.
      scale: What dQ is multiplied by.
      dtype: dtype of dQ.
    """

    def __init__(self, *arguments: Any, scale: float, dtype: jnp.dtype) -> None:
        super().__init__(*arguments)
        self._scale, self._dtype = scale, dtype
        given = [(i, self.pairs.given[i]) for i in self._moved]
        self._by_distance = [i for i, x in given if x.by_distance]
        self._of_rows = [i for i, x in given if not x.depends & Depends.KEY]

    def results(self) -> dict[str, Result]:
        """dQ, and sums for each query, and for each distance."""
        rows, _ = rows_and_features(self.laid)
        features = whole_lanes(self.problem.query.values.shape[-1])
        lines = *rows[:2], self.laid.distances[1]
        f32 = jnp.float32
        return {
            "d query": Result((*rows, features), "bntd", self._dtype),
            **{cotangent_of(i): Result(rows, "bnt", f32) for i in self._of_rows},
            **{cotangent_of(i): Result(lines, "bnw", f32) for i in self._by_distance},
        }

    def features(self) -> int:
        """Those of Q Kᵀ, dO Vᵀ and dS K."""
        d, dv = self.widths
        return 2 * d + dv

    def sums(self) -> dict[str, tuple[int, int]]:
        """dQ, and sums for each query on all lanes."""
        features = whole_lanes(self.problem.query.values.shape[-1])
        lanes = dict.fromkeys(map(_sum_of, self._of_rows), (self.rows_of_tile, LANES))
        return {"dq": (self.rows_of_tile, features), **lanes}

    def begin(self, refs: Refs) -> None:
        """All sums are 0."""
        for name in self.sums():
            refs[name][...] = jnp.zeros_like(refs[name])

    def step(self, tile: Tile) -> None:
        """dQ' = dQ + dS K."""
        refs, key = tile.refs, tile.matrix("k")
        _, d_raw, d_given = self.cotangents(tile)
        refs["dq"][...] += self.dot(d_raw.astype(key.dtype), key, over=(1, 0))
        for i in self._of_rows:
            total = jnp.sum(d_given[i].astype(jnp.float32), axis=1)
            refs[_sum_of(i)][...] += jnp.broadcast_to(total[:, None], refs[_sum_of(i)].shape)
        for i in self._by_distance:
            tile.add_to_diagonals(cotangent_of(i), d_given[i])

    def finish(self, refs: Refs) -> None:
        """Write dQ = scale · dQ, and the sums for each query."""
        refs["d query"][...] = (refs["dq"][...] * self._scale).astype(self._dtype)
        for i in self._of_rows:
            refs[cotangent_of(i)][...] = as_row(refs[_sum_of(i)][:, 0])


class OfKeys(_Transpose):
    """dK and dV, and sums over queries of the cotangents of what the pairs are given.

    Args:
      *arguments: See `_Transpose`.
      dtype: dtype of dK and dV.
    """

    rows = Rows.KEYS

    def __init__(self, *arguments: Any, dtype: jnp.dtype) -> None:
        super().__init__(*arguments)
        self._dtype = dtype
        self._of_rows = [i for i in self._moved if self.pairs.given[i].depends == Depends.KEY]

    def _shapes(self) -> dict[str, tuple[int, int]]:
        sides = {"dk": self.problem.key, "dv": self.problem.value}
        features = {name: whole_lanes(x.values.shape[-1]) for name, x in sides.items()}
        return {name: (self.rows_of_tile, size) for name, size in features.items()}

    def results(self) -> dict[str, Result]:
        """dK and dV, and sums for each key and query head."""
        grid = self.laid.grid(self.rows)
        num_heads, num_kv_heads = grid.heads
        length = grid.lengths[1]
        (_, of_key), (_, of_value) = self._shapes().values()
        rows = grid.batch, num_kv_heads, length
        per_head = grid.batch, num_heads, length
        return {
            "d key": Result((*rows, of_key), "bksd", self._dtype),
            "d value": Result((*rows, of_value), "bksd", self._dtype),
            **{cotangent_of(i): Result(per_head, "bns", jnp.float32) for i in self._of_rows},
        }

    def features(self) -> int:
        """Those of K Qᵀ, V dOᵀ, Pᵀ dO and dSᵀ Q."""
        return 2 * sum(self.widths)

    def sums(self) -> dict[str, tuple[int, int]]:
        """dK and dV, and sums for each key on all lanes."""
        lanes = dict.fromkeys(map(_sum_of, self._of_rows), (self.rows_of_tile, LANES))
        return {**self._shapes(), **lanes}

    def begin_heads(self, refs: Refs) -> None:
        """dK = dV = 0."""
        for name in self._shapes():
            refs[name][...] = jnp.zeros_like(refs[name])

    def begin(self, refs: Refs) -> None:
        """The sums of a query head are 0."""
        for i in self._of_rows:
            refs[_sum_of(i)][...] = jnp.zeros_like(refs[_sum_of(i)])

    def step(self, tile: Tile) -> None:
        """dK' = dK + dSᵀ Q, dV' = dV + Pᵀ dO."""
        refs, query, do = tile.refs, tile.matrix("q"), tile.matrix("do")
        p, d_raw, d_given = self.cotangents(tile)
        refs["dv"][...] += self.dot(p.astype(do.dtype), do, over=(1, 0))
        refs["dk"][...] += self.dot(d_raw.astype(query.dtype), query, over=(1, 0))
        for i in self._of_rows:
            total = jnp.sum(d_given[i].astype(jnp.float32), axis=1)
            refs[_sum_of(i)][...] += jnp.broadcast_to(total[:, None], refs[_sum_of(i)].shape)

    def finish(self, refs: Refs) -> None:
        """Write the sums of a query head."""
        for i in self._of_rows:
            refs[cotangent_of(i)][...] = as_row(refs[_sum_of(i)][:, 0])

    def finish_heads(self, refs: Refs) -> None:
        """Write dK, times the part of the scale that is not in the queries, and dV."""
        dk, factor = refs["dk"][...], self.laid.factor
        if factor is not None:
            dk = dk * (refs["factor"][0, 0] if isinstance(factor, jax.Array) else factor)
        refs["d key"][...] = dk.astype(self._dtype)
        refs["d value"][...] = refs["dv"][...].astype(self._dtype)


class Undefined(OfScores):
    """Which queries have undefined scores, and which see a value that is not finite.

    Args:
      laid: The arrays.
      given: What the pairs are given.
      bad: Which queries, keys and values are not finite `[B, T, N]`, `[B, S, K]`, by the number of
        the leaf.
    """

    most_unrolled = 0  # it seldom runs

    def __init__(
        self, laid: Laid, given: Sequence[jax.Array], bad: Mapping[int, jax.Array]
    ) -> None:
        super().__init__(laid, given)
        self._bad = bad

    def operands(self) -> Operands:
        """The flags as numbers, and what the pairs are given."""
        return {
            "bad query": self.laid.flags(self._bad[QUERY], "btn"),
            "bad key": self.laid.flags(self._bad[KEY], "bsk"),
            "bad value": self.laid.flags(self._bad[VALUE], "bsk"),
            **self.laid.given(self._given),
        }

    def results(self) -> dict[str, Result]:
        """Flags of queries as numbers, for scores and for values."""
        rows, _ = rows_and_features(self.laid)
        return dict.fromkeys(("scores", "values"), Result(rows, "bnt", jnp.float32))

    def features(self) -> int:
        """No products."""
        return 0

    def sums(self) -> dict[str, tuple[int, int]]:
        """The largest flag that each query sees, on all lanes."""
        return dict.fromkeys(("of scores", "of values"), (self.rows_of_tile, LANES))

    def begin(self, refs: Refs) -> None:
        """No query sees anything."""
        for name in self.sums():
            refs[name][...] = jnp.zeros_like(refs[name])

    def step(self, tile: Tile) -> None:
        """A query that sees a bad key, or is bad and sees any; one that sees a bad value."""
        given = self.given(tile)
        zeros = jnp.zeros(tile.shape, jnp.float32)
        scores = self.mask(tile, self.modify(tile, zeros, given, {}), given)
        flags = jnp.maximum(tile.over_pairs("bad query"), tile.over_pairs("bad key"))
        for name, found in (("of scores", flags), ("of values", tile.over_pairs("bad value"))):
            seen = jnp.max(jnp.where(scores == -jnp.inf, 0.0, found), axis=1)
            ref = tile.refs[name]
            ref[...] = jnp.maximum(ref[...], jnp.broadcast_to(seen[:, None], ref.shape))

    def finish(self, refs: Refs) -> None:
        """Write the flags."""
        refs["scores"][...] = as_row(refs["of scores"][:, 0])
        refs["values"][...] = as_row(refs["of values"][:, 0])


def _tangent_of(number: int) -> str:
    return f"tangent of given {number}"


def cotangent_of(number: int) -> str:
    """The name of the result that is the cotangent of one of the arrays that pairs are given."""
    return f"cotangent of given {number}"


def _sum_of(number: int) -> str:
    return f"sum of given {number}"
