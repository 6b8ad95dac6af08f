"""One attention problem in canonical form: what every implementation is given."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.attention.dropout import keep_weights
from flax_attn.coords import Aligned
from flax_attn.masks import Mask
from flax_attn.normalizers import Normalizer
from flax_attn.scores import ScoreMod


@pytree
class Static:
    """A Python number that stays one under `jit`, because it is part of the structure."""

    value: Any = static()


@pytree
class Problem:
    """Attention with everything that was a convenience expressed by masks and score modifiers.

    Every array whose axes follow batch, heads, queries or keys is `Aligned`, with all batch axes
    present (of size 1 where nothing varies). Causality, windows and boolean arrays are part of
    `mask`, lengths are the fields `valid`, a bias is the first score modifier, a sink is applied
    outside.
    """

    query: Aligned  # [*B, T, N, D], "btnd"
    key: Aligned  # [*B, S, K, D], "bskd"
    value: Aligned  # [*B, S, K, Dv], "bskd"
    scale: Any  # a number
    mask: Mask
    score_mod: ScoreMod | None
    query_fields: dict[str, Aligned]  # [*B | 1, N | 1, T], "bnt"
    key_fields: dict[str, Aligned]  # [*B | 1, N | 1, S], "bns"
    head_ids: Aligned  # [*1, N], "bn"
    batch_ids: Aligned  # [*B], "b"
    drop: Any  # (rate, seed [2]), or None
    query_numbers: Any  # of dropout, or None: [*B | 1, 1, T], "bnt"
    key_numbers: Any  # [*B | 1, 1, S], "bns"
    plan: Any  # the kinds of blocks, Aligned "bnxy", or None
    shared_drop: bool = static()  # whether batch elements and heads drop the same weights
    plan_block: tuple[int, int] | None = static()
    hides: bool = static()  # whether a query may not see a key
    sparse: bool = static()  # whether that is probably so for most of them
    normalizer: Normalizer = static()  # without leaves
    precision: lax.PrecisionLike = static()
    output_dtype: Any = static()

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading shape `*B`."""
        return self.query.values.shape[:-3]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, S, N and K."""
        length_q, num_heads = self.query.values.shape[-3:-1]
        length_k, num_kv_heads = self.key.values.shape[-3:-1]
        return length_q, length_k, num_heads, num_kv_heads

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of query, key and value."""
        return self.query.values.dtype

    @property
    def scores_dtype(self) -> jnp.dtype:
        """The dtype of scores, statistics and accumulators."""
        return statistics_dtype(self.dtype)

    def records(self) -> tuple[Record, Record]:
        """The coordinates, as masks and score modifiers see them: `[*B, N, T, 1]`, `[..., 1, S]`.

        Works on tiles, too.
        """
        query = {name: x.values[..., :, None] for name, x in self.query_fields.items()}
        key = {name: x.values[..., None, :] for name, x in self.key_fields.items()}
        query["head_ids"] = self.head_ids.values[..., None, None]
        return Record("query", query), Record("key", key)

    def with_output(self, dtype: jnp.dtype) -> "Problem":
        """The same problem with an output of another dtype."""
        return dataclasses.replace(self, output_dtype=dtype)

    def take(self, rows: jax.Array | None, cols: jax.Array | None) -> "Problem":
        """The problem of some queries and some keys, by number; None = all."""
        chosen = {"t": rows, "s": cols}

        def take(x: Any) -> Any:
            if not is_aligned(x):
                return x
            values, first = x.values, x.values.ndim - len(x.axes)
            for position, letter in enumerate(x.axes):
                axis = first + position
                ids = chosen.get(letter)
                if ids is not None and values.shape[axis] > 1:
                    values = jnp.take(values, ids, axis=axis)
            return Aligned(values, x.axes)

        return jax.tree.map(take, self, is_leaf=is_aligned)

    def modified(self, scores: jax.Array, seen: jax.Array | None) -> jax.Array:
        """Scores `[*B, N, T, S]` after the modifiers. Works on tiles, too.

        What overflowed, or is hidden, must reach neither a modifier nor its derivative: the
        modifiers read 0 for it. It stays what it was, unless they hide it by −∞.
        """
        if self.score_mod is None:
            return scores
        q, k = self.records()
        finite = jnp.isfinite(scores)
        known = finite if seen is None else finite & seen
        modified = self.score_mod(jnp.where(known, scores, 0), q, k, q.head_ids)
        modified = jnp.broadcast_to(modified, scores.shape).astype(scores.dtype)
        return jnp.where(finite | jnp.isneginf(modified), modified, scores)

    def keep(self, batch_ids: jax.Array) -> jax.Array:
        """Which weights dropout keeps; `batch_ids` of the records' rank. Works on tiles, too."""
        head_ids = self.head_ids.values[..., None, None]
        if self.shared_drop:
            batch_ids, head_ids = jnp.zeros_like(batch_ids), jnp.zeros_like(head_ids)
        query_ids = self.query_numbers.values[..., :, None]
        key_ids = self.key_numbers.values[..., None, :]
        return keep_weights(self.drop, batch_ids, head_ids, query_ids, key_ids)

    def visible(self) -> jax.Array:
        """Who sees whom: the mask, between tokens that are valid. Works on tiles, too."""
        q, k = self.records()
        seen = self.mask(q, k)
        for fields, record in ((self.query_fields, q), (self.key_fields, k)):
            if "valid" in fields:
                seen = seen & record.valid
        return seen


def is_aligned(x: Any) -> bool:
    """Whether a node of a tree is an `Aligned` array."""
    return isinstance(x, Aligned)


def leaf_axes(tree: Any) -> list[str]:
    """The axes of every leaf of a structure, empty for those that are never cut."""
    numbered = jax.tree.leaves(tree.unflatten(range(tree.num_leaves)), is_leaf=is_aligned)
    return [x.axes if is_aligned(x) else "" for x in numbered]


def freeze(tree: Any) -> Any:
    """Make the Python numbers of a tree part of its structure."""
    return jax.tree.map(lambda x: Static(x) if isinstance(x, bool | int | float) else x, tree)


def thaw(tree: Any) -> Any:
    """Undo `freeze`."""

    def is_static(x: Any) -> bool:
        return isinstance(x, Static)

    return jax.tree.map(lambda x: x.value if is_static(x) else x, tree, is_leaf=is_static)
