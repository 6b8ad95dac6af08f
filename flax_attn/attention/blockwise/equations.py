"""The equations of blockwise attention: begin, tile step and finish of each pass.

Letters: R = G · t rows, the queries of a block for the G heads that share a key head; s keys of a
tile. Every tile has the axes `[b, k, ...]`: one batch element and a few key heads at a time on a
CPU, all of them elsewhere.

Forward (FlashAttention, algorithm 1), over the tiles of a block of queries:

    S = scale · Q Kᵀ, modified and masked
    m' = max(m, rowmax S),  ℓ' = e^(m − m') ℓ + rowsum e^(S − m'),  A' = e^(m − m') A + e^(S − m') V
    O = A / ℓ,  LSE = m + log ℓ

Tangent, linear in Q̇, K̇, V̇ and the other tangents, with P = e^(S − LSE):

    Ṡ = scale · (Q̇ Kᵀ + Q K̇ᵀ) through the modifiers,  r = rowsum(P ∘ Ṡ)
    Ȯ = (P ∘ Ṡ) V + P V̇ − r O,  LSĖ = r

Its transpose (FlashAttention, algorithm 4), with c the cotangent of the LSE:

    δ = rowsum(dO ∘ O) − c,  dV = Pᵀ dO,  dS = P ∘ (dO Vᵀ − δ), back through the modifiers
    dQ = scale · dS K,  dK = scale · dSᵀ Q

References:
  Rabe, Staats, "Self-attention Does Not Need O(n²) Memory", 2021, arXiv:2112.05682; Dao, Fu, Ermon,
  Rudra, Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", NeurIPS
  2022, arXiv:2205.14135.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_attn._cpu.barriers import separate
from flax_attn.attention._core.problem import KEY, QUERY, VALUE
from flax_attn.attention._core.scale import split_scale
from flax_attn.attention.blockwise.storage import Place, Storage, Stored
from flax_attn.attention.blockwise.sweep import Equations
from flax_attn.attention.blockwise.tile import Rows, Tile, dot

OutputAndLse = tuple[Stored, Stored]


class Forward(Equations[OutputAndLse, None, tuple[Any, jax.Array]]):
    """O and LSE."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.problem = storage, storage.problem
        self.normalizer = storage.problem.normalizer
        self.features = self.problem.value.values.shape[-1]

    def zeros(self) -> OutputAndLse:
        """No output yet."""
        output = self.storage.zeros(self.features, self.problem.output_dtype)
        return output, self.storage.zeros(1, self.problem.scores_dtype)

    def begin(self, rows: Rows, carry: OutputAndLse) -> tuple[None, tuple[Any, jax.Array]]:
        """m = −∞, ℓ = 0, A = 0."""
        del carry
        dtype = self.problem.scores_dtype
        statistics = self.normalizer.begin(rows.shape, dtype)
        return None, (statistics, jnp.zeros((*rows.shape, self.features), dtype))

    def step(self, tile: Tile, block: None, state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        """m', ℓ' and A'."""
        del block
        statistics, a = state
        s = tile.mask(tile.modify(tile.products(tile.rows.query, tile.key), {}))
        statistics, factor, p = self.normalizer.extend(statistics, s)
        a = a if factor is None else factor[..., None] * a
        p = tile.drop(p).astype(self.problem.dtype)
        return statistics, a + dot("bkrs,bksd->bkrd", p, tile.value, self.problem)

    def finish(
        self, rows: Rows, block: None, state: tuple[Any, jax.Array], carry: OutputAndLse
    ) -> OutputAndLse:
        """O = A / ℓ, LSE = m + log ℓ."""
        del block
        statistics, a = state
        divisor, lse = self.normalizer.finish(statistics)
        o = a if divisor is None else a / divisor[..., None]
        return rows.write(carry[0], o), rows.write(carry[1], lse[..., None])


class RowsOfTangent(NamedTuple):
    """What the tangent's tiles need of their rows: O, LSE and Q̇, `[b, k, R, d]` and `[b, k, R]`."""

    o: jax.Array
    lse: jax.Array
    dq: jax.Array | None


class Tangent(Equations[OutputAndLse, RowsOfTangent, tuple[jax.Array, jax.Array]]):
    """Ȯ and LSĖ along tangents of some leaves.

    Args:
      storage: The arrays.
      results: O `[*B, T, N, Dv]` and LSE `[*B, T, N]`.
      tangents: The tangents by the number of the leaf.
    """

    def __init__(
        self,
        storage: Storage,
        results: tuple[jax.Array, jax.Array],
        tangents: Mapping[int, jax.Array],
    ) -> None:
        output, lse = results
        self.storage, self.problem = storage, storage.problem
        self.normalizer = storage.problem.normalizer
        self.scale = storage.structure.scale
        self.output, self.lse = storage.store(output, "btnd"), storage.store(lse[..., None], "btnd")
        letters = storage.structure.letters
        self.tangents = {i: storage.store(x, letters[i]) for i, x in tangents.items()}
        self.others = [i for i in tangents if i not in (QUERY, KEY, VALUE, self.scale)]

    def zeros(self) -> OutputAndLse:
        """No derivatives yet."""
        features = self.problem.value.values.shape[-1]
        output = self.storage.zeros(features, self.output.dtype)
        return output, self.storage.zeros(1, self.lse.dtype)

    def begin(
        self, rows: Rows, carry: OutputAndLse
    ) -> tuple[RowsOfTangent, tuple[jax.Array, jax.Array]]:
        """A = 0, r = 0."""
        del carry
        dtype = self.problem.scores_dtype
        o, lse, _ = _output_and_lse(rows, self.output, self.lse)
        dq = rows.scaled(rows.take(self.tangents[QUERY])) if QUERY in self.tangents else None
        a = jnp.zeros((*rows.shape, o.shape[-1]), dtype)
        return RowsOfTangent(o, lse, dq), (a, jnp.zeros(rows.shape, dtype))

    def step(
        self, tile: Tile, block: RowsOfTangent, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """A' = A + (P ∘ Ṡ) V + P V̇, r' = r + rowsum(P ∘ Ṡ)."""
        a, r = state
        query, key = tile.rows.query, tile.key
        raw = tile.products(query, key)
        leaves = {i: tile.leaf(i) for i in self.others}
        changes = {i: tile.leaf(i, self.tangents[i]) for i in self.others}
        d_raw = self._change_of_products(tile, block, raw)
        s, ds = jax.jvp(tile.modify, (raw, leaves), (d_raw, changes))
        s = tile.mask(s)
        p = self.normalizer.weights(s, block.lse[..., None])
        dp = tile.zero_if_hidden(self.normalizer.slope(p, s) * ds, s)
        r = r + jnp.sum(dp, axis=-1)
        dtype = self.problem.dtype
        a = a + dot("bkrs,bksd->bkrd", tile.drop(dp).astype(dtype), tile.value, self.problem)
        if VALUE in self.tangents:
            p, dv = tile.drop(p).astype(dtype), tile.take(self.tangents[VALUE])
            a = a + dot("bkrs,bksd->bkrd", p, dv, self.problem)
        return a, r

    def _change_of_products(self, tile: Tile, block: RowsOfTangent, raw: jax.Array) -> jax.Array:
        """scale · (Q̇ Kᵀ + Q K̇ᵀ) + scalė · Q Kᵀ."""
        query, key = tile.rows.query, tile.key
        change = jnp.zeros_like(raw)
        if block.dq is not None and KEY in self.tangents:  # one product over twice the features
            both = jnp.concatenate([block.dq, query], axis=-1)
            keys = jnp.concatenate([key, tile.take(self.tangents[KEY])], axis=-1)
            change = tile.products(both, keys)
        elif block.dq is not None:
            change = tile.products(block.dq, key)
        elif KEY in self.tangents:
            change = tile.products(query, tile.take(self.tangents[KEY]))
        if self.scale in self.tangents:
            d_scale = self.tangents[self.scale].whole().astype(raw.dtype)
            change = change + d_scale * dot("bkrd,bksd->bkrs", query, key, self.problem)
        return change

    def finish(
        self,
        rows: Rows,
        block: RowsOfTangent,
        state: tuple[jax.Array, jax.Array],
        carry: OutputAndLse,
    ) -> OutputAndLse:
        """Ȯ = A − r O, LSĖ = r."""
        a, r = state
        if self.normalizer.coupled:
            a = a - r[..., None] * block.o.astype(a.dtype)
        else:  # the LSE does not make the weights 0 where a row is not defined
            a, r = jnp.where(jnp.isposinf(block.lse)[..., None], 0, a), jnp.zeros_like(r)
        return rows.write(carry[0], a), rows.write(carry[1], r[..., None])


class RowsOfTranspose(NamedTuple):
    """What the transpose's tiles need of their rows: LSE, δ `[b, k, R]`, dO, dOᵀ and Qᵀ."""

    lse: jax.Array
    delta: jax.Array
    do: jax.Array
    do_t: jax.Array
    q_t: jax.Array


class Sums(NamedTuple):
    """Cotangents that are sums over blocks of queries.

    Attributes:
      keys: dK and dV of the heads at hand `[b, k, d, S]`, transposed, by the number of the leaf.
      others: Cotangents of the other leaves, by number.
    """

    keys: dict[int, jax.Array]
    others: dict[int, Stored]


class Gradients(NamedTuple):
    """The cotangents of the leaves: those that are written block by block, and the sums."""

    written: dict[int, Stored]
    sums: Sums


class Transpose(Equations[Gradients, RowsOfTranspose, tuple[jax.Array, Sums]]):
    """The cotangents of some leaves, given those of output and LSE.

    Args:
      storage: The arrays.
      results: O `[*B, T, N, Dv]` and LSE `[*B, T, N]`.
      cotangents: dO and c, the cotangents of output and LSE.
      active: The numbers of the leaves.
    """

    def __init__(
        self,
        storage: Storage,
        results: tuple[jax.Array, jax.Array],
        cotangents: tuple[jax.Array, jax.Array],
        active: tuple[int, ...],
    ) -> None:
        output, lse = results
        self.storage, self.active = storage, active
        self.problem, self.normalizer = storage.problem, storage.problem.normalizer
        self.scale = storage.structure.scale
        self.output, self.lse = storage.store(output, "btnd"), storage.store(lse[..., None], "btnd")
        self.d_output = storage.store(cotangents[0], "btnd")
        self.d_lse = storage.store(cotangents[1][..., None], "btnd")
        self.others = [i for i in active if i not in (QUERY, KEY, VALUE, self.scale)]

    def zeros(self) -> Gradients:
        """No cotangents yet."""
        dtype = self.problem.scores_dtype
        written = {
            i: self.storage.zeros_like(i, self.storage.gradient_dtype(i))
            for i in (QUERY, KEY, VALUE)
            if i in self.active
        }
        summed = [*self.others, *([self.scale] if self.scale in self.active else [])]
        return Gradients(written, Sums({}, {i: self.storage.zeros_like(i, dtype) for i in summed}))

    def begin_heads(self, place: Place, carry: Gradients) -> Gradients:
        """dK = dV = 0 for some heads."""
        keys = {}
        for i in (KEY, VALUE):
            if i in self.active:
                features = self.storage.shapes[i][-1]
                shape = place.batch.size, place.heads.size, features, self.storage.length_k
                keys[i] = jnp.zeros(shape, self.problem.scores_dtype)
        return carry._replace(sums=carry.sums._replace(keys=keys))

    def begin(self, rows: Rows, carry: Gradients) -> tuple[RowsOfTranspose, tuple[jax.Array, Sums]]:
        """δ = rowsum(dO ∘ O) − c; dQ = 0."""
        dtype = self.problem.scores_dtype
        o, lse, defined = _output_and_lse(rows, self.output, self.lse)
        do = _where(defined, rows.take(self.d_output)).astype(dtype)
        delta = jnp.sum(do * o.astype(dtype), axis=-1)
        delta = delta - _where(defined, rows.take(self.d_lse))[..., 0]
        (delta,) = separate(delta)  # otherwise XLA joins this sum and the product dO Vᵀ
        do = do.astype(self.problem.dtype)
        # Otherwise XLA folds the transposes into dot products, which then leave the fast kernels of
        # CPUs, and fail for bfloat16.
        q_t, do_t = separate(jnp.swapaxes(rows.query, -1, -2), jnp.swapaxes(do, -1, -2))
        dq = jnp.zeros((*rows.shape, rows.query.shape[-1]), dtype)
        return RowsOfTranspose(lse, delta, do, do_t, q_t), (dq, carry.sums)

    def step(
        self, tile: Tile, block: RowsOfTranspose, state: tuple[jax.Array, Sums]
    ) -> tuple[jax.Array, Sums]:
        """dV' = dV + Pᵀ dO, dK' = dK + dSᵀ Q, dQ' = dQ + dS K."""
        dq, sums = state
        dtype = self.problem.dtype
        raw = tile.products(tile.rows.query, tile.key)
        s, pull_back = jax.vjp(tile.modify, raw, {i: tile.leaf(i) for i in self.others})
        s = tile.mask(s)
        p = self.normalizer.weights(s, block.lse[..., None])
        dp = tile.drop(dot("bkrd,bksd->bkrs", block.do, tile.value, self.problem))
        centred = dp - block.delta[..., None] if self.normalizer.coupled else dp
        d_raw, d_leaves = pull_back(tile.zero_if_hidden(self.normalizer.slope(p, s) * centred, s))
        d_raw = d_raw.astype(dtype)
        keys = dict(sums.keys)
        if VALUE in self.active:
            p = tile.drop(p).astype(dtype)
            dv_t = dot("bkdr,bkrs->bkds", block.do_t, p, self.problem)
            keys[VALUE] = tile.add_keys(keys[VALUE], dv_t)
        if KEY in self.active:
            dk_t = dot("bkdr,bkrs->bkds", block.q_t, d_raw, self.problem)
            keys[KEY] = tile.add_keys(keys[KEY], dk_t)
        if QUERY in self.active or self.scale in self.active:
            dq = dq + dot("bkrs,bksd->bkrd", d_raw, tile.key, self.problem)
        changed = {i: sums.others[i].plus(tile.place, d_leaves[i]) for i in self.others}
        return dq, Sums(keys, sums.others | changed)

    def finish(
        self,
        rows: Rows,
        block: RowsOfTranspose,
        state: tuple[jax.Array, Sums],
        carry: Gradients,
    ) -> Gradients:
        """Write dQ = scale · dQ; add Σ Q ∘ dQ to the cotangent of the scale."""
        del block
        dq, sums = state
        written, others = carry.written, sums.others
        if self.scale in self.active:
            inner = jnp.sum(rows.query.astype(dq.dtype) * dq)
            others = others | {self.scale: others[self.scale].plus(rows.place, inner)}
        if QUERY in self.active:
            scale = jnp.asarray(self.problem.scale, dq.dtype)
            written = written | {QUERY: rows.write(written[QUERY], dq * scale)}
        return Gradients(written, sums._replace(others=others))

    def finish_heads(self, place: Place, carry: Gradients) -> Gradients:
        """Write dK = scale · dK and dV of some heads."""
        written = carry.written
        factor = split_scale(self.problem)[1]
        for i, total in carry.sums.keys.items():
            if i == KEY and factor is not None:
                total = total * jnp.asarray(factor, total.dtype)
            tile = jnp.transpose(total, (0, 3, 1, 2))
            written = written | {i: written[i].with_tile(place, tile)}
        return Gradients(written, carry.sums._replace(keys={}))


def _output_and_lse(
    rows: Rows, output: Stored, lse: Stored
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """O `[b, k, R, d]` and LSE `[b, k, R]` of a block, and which rows are defined.

    The others get the LSE ∞, which makes all their weights 0, and the output 0.
    """
    o, lse_rows = rows.take(output), rows.take(lse)[..., 0]
    defined = rows.defined(o, lse_rows)
    if defined is not None:
        lse_rows = jnp.where(defined, lse_rows, jnp.inf)
    return _where(defined, o), lse_rows, defined


def _where(defined: jax.Array | None, rows: jax.Array) -> jax.Array:
    """Rows `[b, k, R, d]`, 0 where they are not defined."""
    return rows if defined is None else jnp.where(defined[..., None], rows, 0)
