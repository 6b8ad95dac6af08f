"""The normalised attention call: what every implementation is given."""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import expand_rank, statistics_dtype
from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.attention._core.arguments import Arguments
from flax_attn.attention.dropout import Dropout, keep_weights
from flax_attn.coords import Aligned
from flax_attn.masks import Causal, Full, Mask, Plan, Window
from flax_attn.masks.plan import is_probably_sparse
from flax_attn.normalizers import Normalizer, Sigmoid, Softmax
from flax_attn.scores import Bias, ScoreMod
from flax_attn.scores import score_mod as make_score_mod


@pytree
class StaticNumber:
    """A Python number that is part of a pytree's structure, so that `jit` does not trace it."""

    value: bool | int | float = static()


@pytree
class Drop:
    """Dropout of weights: the rate, and the numbers from which the random bits are made.

    Attributes:
      rate: The probability, without derivatives; `with_rate` has them.
      seed: The key, `uint32[2]`.
      batch_ids: Global number of each batch element `[*B, 1]`, "bn".
      query_numbers: Number of each query in its sequence `[*B | 1, 1, T]`, "bnt".
      key_numbers: Number of each key `[*B | 1, 1, S]`, "bns".
      shared: Whether all batch elements and heads drop the same weights.
    """

    rate: float | jax.Array
    seed: jax.Array
    batch_ids: Aligned
    query_numbers: Aligned
    key_numbers: Aligned
    shared: bool = static()


@pytree
class GivenBlocks:
    """The block map of a plan that the user made.

    Attributes:
      kinds: EMPTY, PARTIAL or FULL `[*B | 1, N | 1, nq, nk]`, "bnxy".
      block: Numbers of queries and of keys in a block.
    """

    kinds: Aligned
    block: tuple[int, int] = static()


@pytree
class Problem:
    """A normalised attention call: convenience arguments are masks and score modifiers here.

    Causality, windows and boolean arrays are part of `mask`. Lengths are the fields `valid` of the
    coordinates. A bias is the first score modifier. A sink is applied outside.

    Every array whose axes follow batch, heads, queries or keys is `Aligned`, and has all batch axes
    (of size 1 where nothing varies). The same class describes a tile of a problem, with one batch
    axis: its methods work on both.

    Attributes:
      query: `[*B, T, N, D]`, "btnd".
      key: `[*B, S, K, D]`, "bskd".
      value: `[*B, S, K, Dv]`, "bskd".
      scale: Factor of the dot products.
      mask: Which pairs are visible.
      score_mod: What is done to the scores.
      query_fields: Coordinates of the queries `[*B | 1, N | 1, T]`, "bnt".
      key_fields: Coordinates of the keys `[*B | 1, N | 1, S]`, "bns".
      head_ids: Global number of each query head `[*1, N]`, "bn".
      drop: Dropout of weights.
      plan: Block map of `mask`. Its leaf is the last.
      may_hide: Whether some pair may be invisible, by the mask, by `valid` or by a modifier.
      sparse: Whether the mask probably hides most scores. It decides about speed only.
      in_order: Whether it is known that the tokens of both sides stand at positions 0, 1, 2, ...,
        and that the valid ones are the first of them.
      normalizer: From scores to weights, without leaves.
      precision: Precision of both dot products.
      output_dtype: dtype of the output.
    """

    query: Aligned
    key: Aligned
    value: Aligned
    scale: float | jax.Array
    mask: Mask
    score_mod: ScoreMod | None
    query_fields: dict[str, Aligned]
    key_fields: dict[str, Aligned]
    head_ids: Aligned
    drop: Drop | None
    plan: GivenBlocks | None
    may_hide: bool = static()
    sparse: bool = static()
    in_order: bool = static()
    normalizer: Normalizer = static()
    precision: lax.PrecisionLike = static()
    output_dtype: jnp.dtype = static()

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
    def scores_shape(self) -> tuple[int, ...]:
        """`[*B, N, T, S]`."""
        length_q, length_k, num_heads, _ = self.sizes
        return (*self.batch, num_heads, length_q, length_k)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of query, key and value."""
        return self.query.values.dtype

    @property
    def scores_dtype(self) -> jnp.dtype:
        """The dtype of scores, statistics and accumulators."""
        return statistics_dtype(self.dtype)

    def records(self) -> tuple[Record, Record]:
        """The coordinates as masks and modifiers see them: `[*B, N, T, 1]`, `[*B, N, 1, S]`."""
        query = {name: x.values[..., :, None] for name, x in self.query_fields.items()}
        key = {name: x.values[..., None, :] for name, x in self.key_fields.items()}
        query["head_ids"] = self.head_ids.values[..., None, None]
        return Record("query", query), Record("key", key)

    def visible(self) -> jax.Array:
        """Which pairs are visible: the mask, between valid tokens. Broadcasts to the scores."""
        q, k = self.records()
        visible = self.mask(q, k)
        for fields, record in ((self.query_fields, q), (self.key_fields, k)):
            if "valid" in fields:
                visible = visible & record.valid
        return visible

    def modified(self, scores: jax.Array, visible: jax.Array | None) -> jax.Array:
        """The scores `[*B, N, T, S]` after the modifiers.

        A score that overflowed, or belongs to an invisible pair, must reach neither a modifier nor
        its derivative: the modifiers read 0 instead. Such a score stays what it was, unless a
        modifier makes it −∞.
        """
        if self.score_mod is None:
            return scores
        q, k = self.records()
        finite = jnp.isfinite(scores)
        known = finite if visible is None else finite & visible
        modified = self.score_mod(jnp.where(known, scores, 0), q, k, q.head_ids)
        modified = jnp.broadcast_to(modified, scores.shape).astype(scores.dtype)
        return jnp.where(finite | jnp.isneginf(modified), modified, scores)

    def kept_weights(self) -> jax.Array:
        """Which weights dropout keeps. Broadcasts to the scores."""
        drop = self.drop
        assert drop is not None
        batch_ids, head_ids = (x.values[..., None, None] for x in (drop.batch_ids, self.head_ids))
        if drop.shared:
            batch_ids, head_ids = jnp.zeros_like(batch_ids), jnp.zeros_like(head_ids)
        query_ids = drop.query_numbers.values[..., :, None]
        key_ids = drop.key_numbers.values[..., None, :]
        return keep_weights((drop.rate, drop.seed), batch_ids, head_ids, query_ids, key_ids)

    def with_output(self, dtype: jnp.dtype) -> "Problem":
        """The same problem with an output of another dtype."""
        return dataclasses.replace(self, output_dtype=dtype)

    def widened(self) -> "Problem":
        """The same problem with all its floats in the dtype of scores."""

        def widen(x: Any) -> Any:
            is_float = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
            return x.astype(statistics_dtype(x.dtype)) if is_float else x

        return jax.tree.map(widen, self)

    def take(self, rows: jax.Array | None, cols: jax.Array | None) -> "Problem":
        """The problem of some queries and some keys, by index. None takes all."""
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

        some = jax.tree.map(take, self, is_leaf=is_aligned)
        return dataclasses.replace(some, in_order=False)

    def first_keys(self, count: int) -> "Problem":
        """The problem of the first keys."""

        def cut(x: Any) -> Any:
            if not is_aligned(x) or "s" not in x.axes:
                return x
            axis = x.values.ndim - len(x.axes) + x.axes.index("s")
            return Aligned(
                lax.slice_in_dim(x.values, 0, min(count, x.values.shape[axis]), axis=axis), x.axes
            )

        return jax.tree.map(cut, self, is_leaf=is_aligned)


# ---- the problem as leaves and a structure, as JAX's primitives need it


@dataclasses.dataclass(frozen=True)
class Structure:
    """A problem without its arrays: `structure.problem(leaves)` is the problem.

    Attributes:
      tree: The problem's pytree structure, with its Python numbers.
    """

    tree: jax.tree_util.PyTreeDef

    @classmethod
    def of(cls, problem: Problem) -> "tuple[list[jax.Array], Structure]":
        """The arrays of a problem, and the rest of it."""

        def hide(x: Any) -> Any:
            return StaticNumber(x) if isinstance(x, bool | int | float) else x

        leaves, tree = jax.tree.flatten(jax.tree.map(hide, problem))
        return leaves, cls(tree)

    def problem(self, leaves: Sequence[Any]) -> Problem:
        """The problem with these leaves: arrays, abstract values, or anything else."""

        def show(x: Any) -> Any:
            return x.value if isinstance(x, StaticNumber) else x

        frozen = self.tree.unflatten(leaves)
        return jax.tree.map(show, frozen, is_leaf=lambda x: isinstance(x, StaticNumber))

    @property
    def num_leaves(self) -> int:
        """How many arrays the problem has."""
        return self.tree.num_leaves

    @functools.cached_property
    def letters(self) -> list[str]:
        """The axes of every leaf, one letter each; empty for a leaf that is never cut."""
        numbers = self.tree.unflatten(range(self.num_leaves))
        leaves = jax.tree.leaves(numbers, is_leaf=is_aligned)
        return [x.axes if is_aligned(x) else "" for x in leaves]

    @functools.cached_property
    def scale(self) -> int | None:
        """The number of the leaf that is the scale; None where the scale is a Python number."""
        scale = self.tree.unflatten(range(self.num_leaves)).scale
        return None if isinstance(scale, StaticNumber) else scale


QUERY, KEY, VALUE = range(3)
"""The numbers of the first leaves."""


def is_aligned(x: Any) -> bool:
    """Whether a node of a pytree is an `Aligned` array."""
    return isinstance(x, Aligned)


# ---- from arguments to a problem


def build_problem(a: Arguments) -> Problem:
    """Build the problem of checked arguments."""
    *batch, num_heads, _, _ = a.scores_shape
    masks = [a.mask] if a.mask is not None else []
    if a.is_causal:
        masks.append(Causal())
    if a.window is not None:
        masks.append(Window(*a.window))
    mask = functools.reduce(operator.and_, masks) if masks else Full()

    modifiers: list[ScoreMod] = [] if a.bias is None else [Bias(a.bias)]
    if a.score_mod is not None:
        modifiers.append(a.score_mod)
    if isinstance(a.normalizer, Sigmoid):
        per_head = jnp.asarray(a.normalizer.bias).reshape((1,) * len(batch) + (-1,))
        modifiers.append(make_score_mod(_add_per_head, bias=Aligned(per_head, "bn")))
    score_mod = functools.reduce(operator.rshift, modifiers) if modifiers else None

    has_sink = isinstance(a.normalizer, Softmax) and a.normalizer.sink is not None
    return Problem(
        query=Aligned(a.query, "btnd"),
        key=Aligned(a.key, "bskd"),
        value=Aligned(a.value, "bskd"),
        scale=a.query.shape[-1] ** -0.5 if a.scale is None else a.scale,
        mask=mask,
        score_mod=score_mod,
        query_fields=a.query_side.fields,
        key_fields=a.key_side.fields,
        head_ids=Aligned(a.head_ids.reshape((1,) * len(batch) + (num_heads,)), "bn"),
        drop=None if a.dropout is None else _drop(a, a.dropout),
        plan=None if a.plan is None else _given_blocks(a.plan, len(a.scores_shape)),
        may_hide=bool(masks)
        or score_mod is not None
        or any("valid" in side.fields for side in (a.query_side, a.key_side)),
        sparse=is_probably_sparse(
            mask,
            (a.query_side.length, a.key_side.length),
            located=a.query_side.located or a.key_side.located,
        ),
        in_order=not (a.query_side.located or a.key_side.located),
        normalizer=_without_leaves(a.normalizer),
        precision=a.precision,
        output_dtype=statistics_dtype(a.query.dtype) if has_sink else a.query.dtype,
    )


def _add_per_head(
    scores: jax.Array, q: Record, k: Record, head_ids: jax.Array, *, bias: Aligned
) -> jax.Array:
    """s + b, for one b or one for each local head."""
    del q, k, head_ids
    return scores + bias.values[..., None, None].astype(scores.dtype)


def _drop(a: Arguments, dropout: Dropout) -> Drop:
    assert a.batch_ids is not None
    rate = dropout.rate
    query_numbers, key_numbers = (
        Aligned(side.numbers, "bn" + side.letter) for side in (a.query_side, a.key_side)
    )
    return Drop(
        rate=lax.stop_gradient(rate) if isinstance(rate, jax.Array) else rate,
        seed=dropout.seed(),
        batch_ids=Aligned(a.batch_ids[..., None], "bn"),
        query_numbers=query_numbers,
        key_numbers=key_numbers,
        shared=dropout.broadcast,
    )


def _given_blocks(plan: Plan, rank: int) -> GivenBlocks:
    return GivenBlocks(Aligned(expand_rank(plan.kinds, rank), "bnxy"), plan.block)


def _without_leaves(normalizer: Normalizer) -> Normalizer:
    """The normaliser as a setting: its sink is applied outside, its bias is a score modifier."""
    if isinstance(normalizer, Softmax):
        return Softmax()
    if isinstance(normalizer, Sigmoid):
        return Sigmoid()
    return normalizer
