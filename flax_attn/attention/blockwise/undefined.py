"""Which rows see something that is not finite, found without O(T · S) memory."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn.attention._finite import not_finite
from flax_attn.attention._layout import KEY, QUERY, VALUE, Layout
from flax_attn.attention._rows import Rows, for_each_rows
from flax_attn.attention._schedule import Schedule
from flax_attn.attention._tile import Tile
from flax_attn.attention._tiles import Place

Arrays = tuple[jax.Array, ...]


def mark_undefined(layout: Layout, schedule: Schedule, output: jax.Array, lse: jax.Array) -> Arrays:
    """NaN where a query sees what is not finite; the dot products have read 0 for it.

    A key or a query makes output and LSE undefined, a value only the output. Where everything is
    finite, which is nearly always, this costs one pass over the inputs.
    """
    if not layout.problem.hides:
        return output, lse
    bad = {
        index: not_finite(layout.restore(layout.leaves[index].values, layout.dtypes[index]))
        for index in (QUERY, KEY, VALUE)
    }
    anything = jnp.any(jnp.stack([jnp.any(flags) for flags in bad.values()]))
    flags = jnp.zeros((*lse.shape, 1), bool)
    of_scores, of_values = lax.cond(
        anything, lambda: _find(layout, schedule, bad, flags), lambda: (flags, flags)
    )
    lse = jnp.where(of_scores[..., 0], jnp.nan, lse)
    return jnp.where(of_scores | of_values, jnp.nan, output), lse


def _find(
    layout: Layout, schedule: Schedule, bad: dict[int, jax.Array], flags: jax.Array
) -> Arrays:
    def rows_step(rows: Rows, results: Arrays) -> Arrays:
        query = rows.take(bad[QUERY][..., None], jnp.dtype(bool))  # [b, k, R, 1]

        def step(state: Any, tile: Tile) -> Any:
            seen = tile.visible_scores(rows.shape)
            found = []
            for index, state_rows in zip((KEY, VALUE), state, strict=True):
                keys = tile.flags(bad[index])  # [b, k, 1, s]
                found.append(state_rows | jnp.any(seen & keys, axis=-1, keepdims=True))
            found[0] = found[0] | (query & jnp.any(seen, axis=-1, keepdims=True))
            return tuple(found)

        begin = jnp.zeros((*rows.shape, 1), bool)
        found = rows.walk(step, (begin, begin))
        return tuple(rows.write(result, x) for result, x in zip(results, found, strict=True))

    def group(place: Place, results: Arrays) -> Arrays:
        return for_each_rows(layout, schedule, place, rows_step, results)

    return layout.for_each(group, (flags, flags))
