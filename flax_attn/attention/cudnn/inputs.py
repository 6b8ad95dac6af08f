"""What cuDNN is given: a problem as arrays with one batch axis, and a few numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flax_attn._jax.cudnn import Band
from flax_attn.attention._core.batch import with_one_batch_axis
from flax_attn.attention._core.problem import Problem
from flax_attn.masks import Causal, Full, Mask, Window
from flax_attn.masks._mask import And
from flax_attn.scores import Bias

Valid = tuple[jax.Array | None, jax.Array | None]
"""Which queries `[B | 1, T]` and which keys `[B | 1, S]` are valid; None = all."""


class Reach(NamedTuple):
    """How many positions a query sees to its left and to its right; None = all."""

    left: int | None
    right: int | None


def reach_of(problem: Problem) -> Reach | None:
    """The mask as a band around the diagonal; None if it is not known to be one.

    If tokens are in order, a side that hides nothing is None.
    """
    reach = _reach(problem.mask)
    if reach is None or not problem.in_order:
        return reach
    length_q, length_k, _, _ = problem.sizes
    left, right = reach
    return Reach(
        None if left is None or left >= length_q - 1 else left,
        None if right is None or right >= length_k - 1 else right,
    )


def _reach(mask: Mask) -> Reach | None:
    if type(mask) is Full:
        return Reach(None, None)
    if type(mask) is Causal:
        return Reach(None, 0)
    if type(mask) is Window:
        left, right = mask.left, mask.right
        if isinstance(left, int | None) and isinstance(right, int | None):
            return Reach(left, right)
        return None
    if type(mask) is And:
        first, second = _reach(mask.first), _reach(mask.second)
        if first is None or second is None:
            return None
        return Reach(_least(first.left, second.left), _least(first.right, second.right))
    return None


def _least(a: int | None, b: int | None) -> int | None:
    return min((x for x in (a, b) if x is not None), default=None)


def valid_tokens(problem: Problem) -> Valid:
    """Which queries and which keys are valid, `[*B | 1, 1, T]` and `[*B | 1, 1, S]`."""
    query, key = (
        fields["valid"].values if "valid" in fields else None
        for fields in (problem.query_fields, problem.key_fields)
    )
    return query, key


class Inputs(NamedTuple):
    """A problem as cuDNN takes it, with one batch axis.

    Attributes:
      arrays: Query `[B, T, N, D]`, key `[B, S, K, D]`, value `[B, S, K, Dv]` and bias `[B | 1, N |
        1, T, S]` or None. Tokens that are not valid are 0.
      band: Scale and mask.
      valid: Which queries and which keys are valid.
      sees: Which queries see a key `[B | 1, T, N | 1]`; None = all.
    """

    arrays: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]
    band: Band
    valid: Valid
    sees: jax.Array | None

    @classmethod
    def of(cls, problem: Problem) -> "Inputs":
        """The inputs of a problem that cuDNN does not decline."""
        problem = with_one_batch_axis(problem)
        reach = reach_of(problem)
        assert reach is not None
        assert isinstance(problem.scale, int | float)
        query, key, value = (x.values for x in (problem.query, problem.key, problem.value))
        bias = None
        if problem.score_mod is not None:
            assert isinstance(problem.score_mod, Bias)
            bias = problem.score_mod.values.values
        valid_q, valid_k = (None if x is None else x[:, 0] for x in valid_tokens(problem))
        lengths = None
        if valid_q is not None or valid_k is not None:
            lengths = _length(valid_q, query), _length(valid_k, key)
        arrays = _kept(query, valid_q), _kept(key, valid_k), _kept(value, valid_k), bias
        band = Band(
            scale=float(problem.scale),
            causal=reach.right == 0,
            window=None if reach.left is None else reach.left + 1,
            lengths=lengths,
        )
        valid = valid_q, valid_k
        sees = _sees(reach, valid, query.shape[1]) if bias is None else _sees_by(bias, reach, valid)
        return cls(arrays, band, valid, sees)

    def only_valid(
        self, d_query: jax.Array, d_key: jax.Array, d_value: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The gradients, 0 for tokens that are not valid."""
        valid_q, valid_k = self.valid
        return _kept(d_query, valid_q), _kept(d_key, valid_k), _kept(d_value, valid_k)


def _kept(array: jax.Array, valid: jax.Array | None) -> jax.Array:
    """0 for tokens that are not valid. Their weights are 0 too, but 0 · NaN is not."""
    return array if valid is None else jnp.where(valid[..., None, None], array, 0)


def _length(valid: jax.Array | None, tokens: jax.Array) -> jax.Array:
    """The number of valid tokens `[B]`, at least 1, so that cuDNN meets no empty sequence.

    A token that is not valid is 0, and what a query makes of it is not used.
    """
    batch, length = tokens.shape[:2]
    if valid is None:
        return jnp.full(batch, length, jnp.int32)
    count = jnp.maximum(jnp.sum(valid, axis=-1, dtype=jnp.int32), 1)
    return jnp.broadcast_to(count, (batch,))


def _sees(reach: Reach, valid: Valid, length_q: int) -> jax.Array | None:
    """Which queries see a key `[B | 1, T, 1]`. Without lengths all do, as windows have T ≤ S."""
    valid_q, valid_k = valid
    if valid_q is None and valid_k is None:
        return None
    sees = jnp.ones((1, length_q), bool) if valid_q is None else valid_q
    if valid_k is not None:
        first = jnp.zeros(length_q, jnp.int32)
        if reach.left is not None:
            first = jnp.maximum(jnp.arange(length_q, dtype=jnp.int32) - reach.left, 0)
        sees = sees & (first[None] < jnp.sum(valid_k, axis=-1, dtype=jnp.int32)[:, None])
    return sees[..., None]


def _sees_by(bias: jax.Array, reach: Reach, valid: Valid) -> jax.Array:
    """Which queries see a key `[B | 1, T, N | 1]`, where the bias may hide some by −∞."""
    rows, columns = (jnp.arange(size, dtype=jnp.int32) for size in bias.shape[-2:])
    seen = ~jnp.isneginf(bias)
    if reach.right == 0:
        seen &= (columns[None] <= rows[:, None])[None, None]
    for x, axes in zip(valid, ((1, 3), (1, 2)), strict=True):
        if x is not None:
            seen &= jnp.expand_dims(x, axes)
    return jnp.swapaxes(jnp.any(seen, axis=-1), -1, -2)
