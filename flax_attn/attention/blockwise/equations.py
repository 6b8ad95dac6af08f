"""The blockwise implementation: O(T + S) memory, blocks that the mask hides skipped, any platform.

Letters: R = G · t rows, the queries of a block for the G heads that share a key head; s keys of a
tile. Every tile has the axes `[b, k, ...]`: one batch element and one key head at a time on a CPU,
where a tile then stays in the cache; all of them at once elsewhere.

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

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._blocks import choose_blocks
from flax_attn.attention._layout import KEY, QUERY, VALUE, Layout
from flax_attn.attention._problem import Problem, thaw
from flax_attn.attention._rows import Rows, for_each_rows, plan_tiles, split_scale
from flax_attn.attention._tile import Tile, dot
from flax_attn.attention._tiles import Place
from flax_attn.attention._undefined import mark_undefined

Arrays = tuple[jax.Array, ...]


def declines(problem: Problem, platform: str | None) -> str | None:
    """Why this implementation cannot serve a problem on a platform, or None."""
    del platform
    if not problem.normalizer.folds:
        name = type(problem.normalizer).__name__
        return f"the normaliser {name} needs whole rows of scores. Use 'dense'."
    if not all(isinstance(size, int) for size in problem.sizes):
        return "it cuts sequences into blocks, and a length is symbolic. Use 'dense'."
    if 0 in (*problem.batch, *problem.sizes, problem.value.values.shape[-1]):
        return "there is nothing to take block by block: an axis has size 0. Use 'dense'."
    return None


def better_left(problem: Problem, platform: str | None) -> str | None:
    """Why another implementation is likely to be faster, or None."""
    del platform
    length_q, length_k, _, _ = problem.sizes
    if length_q * length_k <= DENSE_SCORES:
        return f"{length_q} × {length_k} scores a head are few enough to be computed at once."
    return None


# Of one head. Measured by `examples/benchmarks/attention.py --threshold`: up to 256 × 256 scores
# a head all heads at once are faster, forward and backward, from 512 × 512 on they are slower; and
# the scores of a head are then at most four times as large as its 256 queries of 64 features.
DENSE_SCORES = 2**16


def run_forward(leaves: Sequence[jax.Array], tree: Any, platform: str | None) -> Arrays:
    """Output and LSE of the leaves of a problem."""
    return forward(_layout(leaves, tree, platform))


def run_tangent(
    leaves: Sequence[jax.Array],
    tree: Any,
    platform: str | None,
    output: jax.Array,
    lse: jax.Array,
    *tangents: jax.Array,
    active: tuple[int, ...],
) -> Arrays:
    """The derivatives of output and LSE along tangents of the leaves `active`."""
    moving = dict(zip(active, tangents, strict=True))
    return tangent(_layout(leaves, tree, platform), output, lse, moving)


def run_transpose(
    leaves: Sequence[jax.Array],
    tree: Any,
    platform: str | None,
    output: jax.Array,
    lse: jax.Array,
    *cotangents: jax.Array,
    active: tuple[int, ...],
) -> Arrays:
    """The cotangents of the leaves `active`."""
    layout = _layout(leaves, tree, platform, gradients=True)
    return transpose(layout, output, lse, cotangents, active)


def _layout(
    leaves: Sequence[jax.Array], tree: Any, platform: str | None, gradients: bool = False
) -> Layout:
    blocks = choose_blocks(thaw(tree.unflatten(leaves)), platform, gradients)
    return Layout(list(leaves), tree, blocks=blocks, sequential=platform == "cpu")


def forward(layout: Layout) -> Arrays:
    """The output `[B, T, N, Dv]` and the LSE `[B, T, N]`."""
    problem, schedule = layout.problem, plan_tiles(layout)
    normalizer = problem.normalizer
    features = problem.value.values.shape[-1]

    def rows_step(rows: Rows, results: Arrays) -> Arrays:
        def step(state: Any, tile: Tile) -> Any:
            statistics, a = state
            s = tile.mask(tile.modify(rows.dots(rows.query, tile.key), {}), -jnp.inf)
            statistics, factor, p = normalizer.extend(statistics, s)
            a = a if factor is None else factor[..., None] * a
            p = tile.drop(p).astype(problem.dtype)
            return statistics, a + dot("bkrs,bksd->bkrd", p, tile.value, problem)

        a = jnp.zeros((*rows.shape, features), problem.scores_dtype)
        begin = normalizer.begin(rows.shape, problem.scores_dtype)
        statistics, a = rows.walk(step, (begin, a))
        divisor, lse = normalizer.finish(statistics)
        o = a if divisor is None else a / divisor[..., None]
        return rows.write(results[0], o), rows.write(results[1], lse[..., None])

    def group(place: Place, results: Any) -> Any:
        return for_each_rows(layout, schedule, place, rows_step, results)

    shape = (*problem.query.values.shape[:-1], features)
    output = layout.store(jnp.zeros(shape, problem.output_dtype))
    lse = jnp.zeros((*shape[:-1], 1), problem.scores_dtype)
    output, lse = layout.for_each(group, (output, lse))
    output, lse = layout.restore(output, problem.output_dtype), lse[..., 0]
    output, lse = mark_undefined(layout, schedule, output, lse)
    return layout.give_out(output, output.dtype), layout.give_out(lse, lse.dtype)


def tangent(layout: Layout, output: jax.Array, lse: jax.Array, tangents: dict[int, Any]) -> Arrays:
    """The derivative of the output and the LSE along tangents of some leaves, by number."""
    problem, schedule = layout.problem, plan_tiles(layout)
    normalizer = problem.normalizer
    others = tuple(index for index in tangents if index not in (QUERY, KEY, VALUE, layout.scale))
    tangents = {i: layout.take_in(x, layout.axes[i]) for i, x in tangents.items()}
    kept = {index: x for index, x in tangents.items() if index not in others}
    output, lse = layout.take_in(output, "btnd"), layout.take_in(lse, "btn")[..., None]
    features = problem.value.values.shape[-1]

    def rows_step(rows: Rows, results: Arrays) -> Arrays:
        o, lse_rows = rows.given(output, lse)
        if QUERY in kept:
            dq = rows.scaled(rows.take(kept[QUERY], problem.dtype))

        def step(state: Any, tile: Tile) -> Any:
            a, r = state
            raw = rows.dots(rows.query, tile.key)
            draw = jnp.zeros_like(raw)
            if QUERY in kept and KEY in kept:  # one dot product over twice the features
                both = jnp.concatenate([dq, rows.query], axis=-1)
                keys = jnp.concatenate([tile.key, tile.keys_like(kept[KEY])], axis=-1)
                draw = rows.dots(both, keys)
            elif QUERY in kept:
                draw = rows.dots(dq, tile.key)
            elif KEY in kept:
                draw = rows.dots(rows.query, tile.keys_like(kept[KEY]))
            if layout.scale in kept:
                draw = draw + layout.piece(layout.scale, tile.place, kept[layout.scale]).astype(
                    raw.dtype
                ) * rows.products(tile.key)
            extras = {i: tile.extras[i] for i in others}
            dextras = {i: layout.piece(i, tile.place, tangents[i]) for i in others}
            s, ds = jax.jvp(tile.modify, (raw, extras), (draw, dextras))
            s = tile.mask(s, -jnp.inf)
            p = normalizer.weights(s, lse_rows)
            dp = tile.seen_only(normalizer.slope(p, s) * ds, s)
            r = r + jnp.sum(dp, axis=-1)
            a = a + dot("bkrs,bksd->bkrd", tile.drop(dp).astype(problem.dtype), tile.value, problem)
            if VALUE in kept:
                p, dv = tile.drop(p).astype(problem.dtype), tile.keys_like(kept[VALUE])
                a = a + dot("bkrs,bksd->bkrd", p, dv, problem)
            return a, r

        a = jnp.zeros((*rows.shape, features), problem.scores_dtype)
        a, r = rows.walk(step, (a, jnp.zeros(rows.shape, problem.scores_dtype)))
        if normalizer.coupled:
            a = a - r[..., None] * o.astype(a.dtype)
        else:
            r = jnp.zeros_like(r)
        return rows.write(results[0], a), rows.write(results[1], r[..., None])

    def group(place: Place, results: Any) -> Any:
        return for_each_rows(layout, schedule, place, rows_step, results, others)

    results = jnp.zeros_like(output), jnp.zeros_like(lse)
    output, lse = layout.for_each(group, results)
    return layout.give_out(output, problem.output_dtype), layout.give_out(lse[..., 0], lse.dtype)


def transpose(
    layout: Layout, output: jax.Array, lse: jax.Array, cotangents: Arrays, active: tuple[int, ...]
) -> Arrays:
    """The cotangents of the leaves `active`, given those of the output and the LSE."""
    problem, schedule = layout.problem, plan_tiles(layout)
    normalizer, dtype = problem.normalizer, problem.scores_dtype
    others = tuple(index for index in active if index not in (QUERY, KEY, VALUE, layout.scale))
    output, lse = layout.take_in(output, "btnd"), layout.take_in(lse, "btn")[..., None]
    d_output = layout.take_in(cotangents[0], "btnd")
    d_lse = layout.take_in(cotangents[1], "btn")[..., None]

    def rows_step(rows: Rows, state: Any) -> Any:
        results, sums, others_sum = state
        o, lse_rows = rows.given(output, lse)
        do = rows.counted(rows.take(d_output, problem.output_dtype)).astype(dtype)
        delta = jnp.sum(do * o.astype(dtype), axis=-1)
        delta = delta - rows.counted(rows.take(d_lse, dtype))[..., 0]
        delta = lax.optimization_barrier(delta)  # else XLA joins this sum and the dot product dO Vᵀ
        do = do.astype(problem.dtype)
        # Their transposes are kept apart: XLA would fold a transpose into the dot product, which
        # on a CPU then leaves the fast kernels (and fails for bfloat16).
        q_t, do_t = (lax.optimization_barrier(jnp.swapaxes(x, -1, -2)) for x in (rows.query, do))

        def step(state: Any, tile: Tile) -> Any:
            dq, sums, others_sum = state
            raw = rows.dots(rows.query, tile.key)
            extras = {i: tile.extras[i] for i in others}
            s, pull = jax.vjp(tile.modify, raw, extras)
            s = tile.mask(s, -jnp.inf)
            p = normalizer.weights(s, lse_rows)
            dp = tile.drop(dot("bkrd,bksd->bkrs", do, tile.value, problem))
            centred = dp - delta[..., None] if normalizer.coupled else dp
            draw, dextras = pull(tile.seen_only(normalizer.slope(p, s) * centred, s))
            draw = draw.astype(problem.dtype)
            if VALUE in active:
                dv_t = dot("bkdr,bkrs->bkds", do_t, tile.drop(p).astype(problem.dtype), problem)
                sums = sums | {VALUE: tile.add_keys(sums[VALUE], dv_t)}
            if KEY in active:
                dk_t = dot("bkdr,bkrs->bkds", q_t, draw, problem)
                sums = sums | {KEY: tile.add_keys(sums[KEY], dk_t)}
            if QUERY in active or layout.scale in active:
                dq = dq + dot("bkrs,bksd->bkrd", draw, tile.key, problem)
            others_sum = {
                i: layout.add_piece(others_sum[i], i, tile.place, dextras[i]) for i in others
            }
            return dq, sums, others_sum

        dq = jnp.zeros((*rows.shape, rows.query.shape[-1]), dtype)
        dq, sums, others_sum = rows.walk(step, (dq, sums, others_sum))
        if layout.scale in active:
            results = results | {layout.scale: results[layout.scale] + rows.inner(dq)}
        if QUERY in active:
            results = results | {QUERY: rows.write(results[QUERY], rows.times_scale(dq))}
        return results, sums, others_sum

    def group(place: Place, state: Any) -> Any:
        results, others_sum = state
        sums = {
            index: jnp.zeros(layout.keys_shape(index, place), dtype)
            for index in (KEY, VALUE)
            if index in active
        }
        state = results, sums, others_sum
        state = for_each_rows(layout, schedule, place, rows_step, state, others)
        results, sums, others_sum = state
        for index, total in sums.items():
            if index == KEY and (factor := split_scale(layout)[1]) is not None:
                total = total * jnp.asarray(factor, dtype)
            tile = jnp.transpose(total, (0, 3, 1, 2)).astype(problem.dtype)
            results = results | {index: layout.put(results[index], "bskd", place, tile)}
        return results, others_sum

    results = {
        index: layout.store(jnp.zeros(layout.leaves[index].values.shape, layout.dtypes[index]))
        for index in active
        if index not in others
    }
    others_sum = {i: jnp.zeros(layout.leaves[i].values.shape, dtype) for i in others}
    results, others_sum = layout.for_each(group, (results, others_sum))
    results = results | others_sum
    return tuple(layout.give_out_like(results[index], index) for index in active)
