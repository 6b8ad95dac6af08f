"""Check the arguments of an attention function, one by one."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_attn._checks import (
    as_floating,
    broadcasts_to,
    check_array,
    expand_rank,
    warn,
)
from flax_attn._functions import kind_of
from flax_attn._integers import as_bound, as_ids, saturate
from flax_attn._jax import varying_axes
from flax_attn.attention._core.parts import align, check_numbers_of_heads
from flax_attn.attention.dropout import Dropout, check_dropout
from flax_attn.coords import Aligned, Coords, to_record
from flax_attn.masks import Dense, Mask, Plan
from flax_attn.masks._mask import how_to_mask
from flax_attn.normalizers import Normalizer, Softmax, check_normalizer
from flax_attn.scores import ScoreMod
from flax_attn.scores._score_mod import how_to_modify

WindowBounds = tuple[int | jax.Array | None, int | jax.Array | None]
"""How far a window reaches to the left and to the right; None = without end."""


@dataclasses.dataclass(frozen=True)
class Side:
    """What is known of the tokens of one side.

    Attributes:
      name: "query" or "key".
      length: T or S.
      coords: The coordinates that the user gave.
      fields: Coordinates `[*B | 1, N | 1, T]`; by default 0 ... T − 1. Lengths are `valid`.
      numbers: The number of each token in its sequence `[*B | 1, 1, T]`, where dropout needs it.
    """

    name: str
    length: int
    coords: Coords | None
    fields: dict[str, Aligned]
    numbers: jax.Array | None

    @property
    def letter(self) -> str:
        """The letter of the token axis."""
        return "t" if self.name == "query" else "s"

    @property
    def located(self) -> bool:
        """Whether the user gave coordinates."""
        return self.coords is not None


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The checked arguments of an attention function, as arrays of JAX with all batch axes.

    Attributes that `dot_product_attention` has too mean the same; these are new:
      function: The public function, for error messages.
      window: The sides of `local_window_size`; None if both are open.
      query_side: The tokens of the queries.
      key_side: The tokens of the keys.
      head_ids_given: Whether `head_ids` are the user's.
      batch_ids: Global number of each batch element `[*B]`, where dropout needs it.
      mask_is_relation: Whether the user gave a `Mask`, not an array.
    """

    function: str
    query: jax.Array
    key: jax.Array
    value: jax.Array
    bias: jax.Array | None
    mask: Mask | None
    mask_is_relation: bool
    scale: float | jax.Array | None
    is_causal: bool
    window: WindowBounds | None
    score_mod: ScoreMod | None
    normalizer: Normalizer
    dropout: Dropout | None
    query_side: Side
    key_side: Side
    head_ids: jax.Array
    head_ids_given: bool
    batch_ids: jax.Array | None
    plan: Plan | None
    precision: lax.PrecisionLike

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """`[*B, N, T, S]`."""
        *batch, length_q, num_heads, _ = self.query.shape
        return (*batch, num_heads, length_q, self.key.shape[-3])


def check_options(function: str, options: dict[str, Any]) -> None:
    """Raise if `options` holds a name that attention does not know."""
    known = set(inspect.signature(check_arguments).parameters) - {"spread"}
    for name in options:
        if name not in known:
            raise TypeError(f"{function}: {name!r} is not an option of dot_product_attention here.")


def check_arguments(
    function: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | Mask | None,
    *,
    scale: float | jax.Array | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | WindowBounds | None = None,
    score_mod: ScoreMod | None = None,
    normalizer: Normalizer = Softmax(),
    dropout: Dropout | None = None,
    query_coords: Coords | None = None,
    key_coords: Coords | None = None,
    head_ids: jax.Array | None = None,
    plan: Plan | None = None,
    precision: lax.PrecisionLike = None,
    spread: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None,
) -> Arguments:
    """Check the arguments of `function`. A missing value is the key.

    `spread` is that of a placement: from the shape of the scores to that of arrays which broadcast
    to them.

    Raises:
      ValueError: If shapes, dtypes or numbers do not fit.
      TypeError: If an argument is of the wrong kind.
    """
    query = as_floating(function, "query", query)
    key = as_floating(function, "key", key)
    value = None if value is None else as_floating(function, "value", value)
    bias = None if bias is None else _as_bias(function, bias)
    check_static(function, "is_causal", is_causal)
    _check_arrays(function, query, key, value)
    batch, (length_q, num_heads, _) = query.shape[:-3], query.shape[-3:]
    length_k = key.shape[-3]
    shape = (*batch, num_heads, length_q, length_k)
    array_shape = shape if spread is None else spread(shape)
    if scale is not None and jnp.ndim(scale) != 0:
        raise ValueError(
            f"{function}: scale must be one number, got shape {list(jnp.shape(scale))}. "
            f"Multiply the query instead: query * scale."
        )
    check_normalizer(function, normalizer, num_heads)
    if head_ids is None:
        for part in (mask, score_mod):
            check_numbers_of_heads(function, part, num_heads)
    check_dropout(function, dropout, batch)
    mask_is_relation = isinstance(mask, Mask)
    mask = None if mask is None else _as_mask(function, mask, array_shape)
    window = _as_window(function, local_window_size)
    bias = None if bias is None else _as_scores(function, "bias", bias, array_shape)
    score_mod = None if score_mod is None else _as_score_mod(function, score_mod, array_shape)
    lengths = {
        "query": _as_lengths(function, "query_seq_lengths", query_seq_lengths, batch),
        "key": _as_lengths(function, "key_value_seq_lengths", key_value_seq_lengths, batch),
    }
    given = {"query": (query_coords, length_q), "key": (key_coords, length_k)}
    query_side, key_side = (
        _as_side(function, name, coords, length, lengths[name], shape, dropout is not None)
        for name, (coords, length) in given.items()
    )
    if plan is not None:
        only_a_mask = mask_is_relation and not is_causal and window is None
        whole = only_a_mask and all(x is None for x in lengths.values())
        _check_plan(function, plan, shape, whole)
    return Arguments(
        function=function,
        query=query,
        key=key,
        value=key if value is None else value,
        bias=bias,
        mask=mask,
        mask_is_relation=mask_is_relation,
        scale=scale,
        is_causal=bool(is_causal),
        window=window,
        score_mod=score_mod,
        normalizer=normalizer,
        dropout=dropout,
        query_side=query_side,
        key_side=key_side,
        head_ids=_as_head_ids(function, head_ids, num_heads),
        head_ids_given=head_ids is not None,
        batch_ids=None if dropout is None else _as_batch_ids(dropout, batch),
        plan=plan,
        precision=precision,
    )


def check_static(function: str, name: str, value: bool) -> None:
    """Raise unless a switch is known while the program is traced."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{function}: {name} must be a Python bool, got a traced array. Make it static, "
            f"jax.jit(function, static_argnames={name!r}), or set it inside the function."
        )
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False, got {value!r}.")


def _check_arrays(function: str, query: jax.Array, key: jax.Array, value: jax.Array | None) -> None:
    arrays = {"query": query, "key": key} | ({} if value is None else {"value": value})
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    if query.ndim < 3 or any(array.ndim != query.ndim for array in arrays.values()):
        raise ValueError(
            f"{function}: query must be [*B, T, N, D], key and value [*B, S, K, D], of one rank, "
            f"got {shapes}. Add a head axis to a single head: query[..., None, :]."
        )
    if query.ndim == 3 and query.shape[-2] > query.shape[-3] > 1:
        warn(
            f"{function}: query {list(query.shape)} is read as [T, N, D], {query.shape[-3]} tokens "
            f"of {query.shape[-2]} heads. If it is [B, T, D], one head, use "
            f"scaled_dot_product_attention; if it is not, add a batch axis: query[None]."
        )
    if any(array.shape[:-3] != query.shape[:-3] for array in arrays.values()):
        raise ValueError(f"{function}: the batch axes *B must be equal, got {shapes}.")
    if any(array.dtype != query.dtype for array in arrays.values()):
        dtypes = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise ValueError(
            f"{function}: query, key and value must have one dtype, got {dtypes}. "
            f"Convert them: key.astype(query.dtype)."
        )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"{function}: query and key must have one head size D, got {shapes}.")
    if query.shape[-1] == 0:
        raise ValueError(f"{function}: the head size D must be at least 1, got {shapes}.")
    if value is not None and value.shape[-3:-1] != key.shape[-3:-1]:
        raise ValueError(
            f"{function}: value must have the key's length and heads [S, K] = "
            f"{list(key.shape[-3:-1])}, got {list(value.shape[-3:-1])}. "
            f"The layout is [*B, S, K, D]; swap axes of [*B, K, S, D]."
        )
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"{function}: the query's heads N must be a multiple of the key's heads K, got "
            f"N = {query.shape[-2]}, K = {key.shape[-2]}. The layout is [*B, T, N, D]; swap axes "
            f"of [*B, N, T, D]."
        )


def _as_bias(function: str, bias: Any) -> jax.Array:
    """A bias as an array of floats."""
    if isinstance(bias, Mask):
        raise TypeError(
            f"{function}: bias must be an array, got the mask {bias!r}. Pass it by name: mask=..."
        )
    check_array(function, "bias", bias)
    if bias.dtype == jnp.bool_:
        raise TypeError(
            f"{function}: bias is added to the scores, got booleans. Pass who may attend to whom "
            f"as the mask, True = attend: mask=bias."
        )
    return as_floating(function, "bias", bias)


def _as_mask(function: str, mask: Any, shape: tuple[int, ...]) -> Mask:
    """The mask, with arrays that have all batch axes."""
    if isinstance(mask, Mask):
        return align(function, mask, shape)
    if isinstance(mask, list | tuple):
        raise TypeError(
            f"{function}: mask must be a boolean array or a Mask, got {type(mask).__name__}. "
            f"Wrap it: jnp.asarray(mask); join masks by & or |: first & second."
        )
    if isinstance(mask, type) or not hasattr(mask, "dtype"):
        raise TypeError(
            f"{function}: mask must be a boolean array or a Mask, got {kind_of(mask)}. "
            f"{how_to_mask(mask)}"
        )
    check_array(function, "mask", mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(
            f"{function}: mask must be boolean, True = attend, got {mask.dtype}. Write "
            f"mask.astype(bool) for 0/1, or pass an additive mask as bias."
        )
    return Dense(_as_scores(function, "mask", jnp.asarray(mask), shape))


def _as_score_mod(function: str, score_mod: Any, shape: tuple[int, ...]) -> ScoreMod:
    """The score modifier, with arrays that have all batch axes."""
    if not isinstance(score_mod, ScoreMod):
        raise TypeError(
            f"{function}: score_mod must be a ScoreMod, got {kind_of(score_mod)}. "
            f"{how_to_modify(score_mod)}"
        )
    return align(function, score_mod, shape)


def _as_scores(function: str, name: str, array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An array that broadcasts to the scores, with all their axes."""
    if not broadcasts_to(array.shape, shape):
        with_heads = (*array.shape[:-2], 1, *array.shape[-2:])
        fix = (
            f" Add a head axis: {name}[..., None, :, :]."
            if array.ndim >= 2 and broadcasts_to(with_heads, shape)
            else ""
        )
        raise ValueError(
            f"{function}: {name} must broadcast to [*B, N, T, S] = {list(shape)}, "
            f"got {list(array.shape)}.{fix}"
        )
    return expand_rank(array, len(shape))


def _as_side(
    function: str,
    name: str,
    coords: Coords | None,
    length: int,
    seq_lengths: jax.Array | None,
    shape: tuple[int, ...],
    needs_numbers: bool,
) -> Side:
    """The tokens of one side."""
    batch, num_heads = shape[:-3], shape[-3]
    axes = "bnt" if name == "query" else "bns"
    numbers = None
    if coords is None:
        numbers = _count(length, batch)
        fields = {"positions": Aligned(numbers, axes)}
    else:
        _check_coords(function, name, coords, length)
        record = to_record(coords, name, len(batch))
        fields = {}
        for field in coords.fields():
            array = jnp.squeeze(getattr(record, field), -1 if name == "query" else -2)
            if not broadcasts_to(array.shape, (*batch, num_heads, length)):
                raise ValueError(
                    f"{function}: {field} of {name}_coords must broadcast to [*B, N, T] = "
                    f"{[*batch, num_heads, length]}, got {list(array.shape)}."
                )
            fields[field] = Aligned(array, axes)
        if needs_numbers:
            _check_token_numbers(function, name, coords, batch)
            numbers = expand_rank(coords.numbers, len(batch) + 1)[..., None, :]
    if seq_lengths is not None:
        valid = _count(length, batch) < seq_lengths[..., None, None]
        if "valid" in fields:
            valid = valid & fields["valid"].values
        fields["valid"] = Aligned(valid, axes)
    return Side(name, length, coords, fields, numbers)


def _count(length: int, batch: tuple[int, ...]) -> jax.Array:
    """0 ... length − 1, as a field `[*1, 1, T]`."""
    return lax.iota(jnp.int32, length).reshape((1,) * (len(batch) + 1) + (-1,))


def _check_coords(function: str, name: str, coords: Any, length: int) -> None:
    if not isinstance(coords, Coords):
        raise TypeError(
            f"{function}: {name}_coords must be Coords, got {type(coords).__name__}. Wrap "
            f"positions: Coords(positions)."
        )
    if coords.positions.shape[-1] != length:
        raise ValueError(
            f"{function}: {name}_coords must have the {length} tokens of the {name}, "
            f"got {coords.positions.shape[-1]}."
        )


def _check_token_numbers(function: str, name: str, coords: Coords, batch: tuple[int, ...]) -> None:
    length = coords.positions.shape[-1]
    if varying_axes(coords.positions) - varying_axes(coords.numbers):
        raise ValueError(
            f"{function}: dropout needs the number of each token in its whole sequence, which "
            f"Coords(positions) within shard_map cannot know. Give {name}_coords = "
            f"Coords(positions, numbers=jnp.arange({length})) where each device has whole "
            f"sequences, numbers=jnp.arange({length}) + {length} * jax.lax.axis_index(axis_name) "
            f"where it has a part of them."
        )
    if not broadcasts_to(coords.numbers.shape, (*batch, length)):
        raise ValueError(
            f"{function}: numbers of {name}_coords must broadcast to [*B, T] = "
            f"{[*batch, length]}, got {list(coords.numbers.shape)}."
        )


def _as_head_ids(function: str, head_ids: jax.Array | None, num_heads: int) -> jax.Array:
    if head_ids is None:
        return lax.iota(jnp.int32, num_heads)
    head_ids = saturate(as_ids(f"{function}: head_ids", head_ids))
    if head_ids.shape != (num_heads,):
        raise ValueError(
            f"{function}: head_ids must be [N] = [{num_heads}], got {list(head_ids.shape)}."
        )
    return head_ids


def _as_batch_ids(dropout: Dropout, batch: tuple[int, ...]) -> jax.Array:
    if dropout.batch_ids is None:
        return lax.iota(jnp.int32, math.prod(batch)).reshape(batch)
    return saturate(as_ids("Dropout: batch_ids", dropout.batch_ids)).reshape(batch)


def _as_lengths(
    function: str, name: str, lengths: jax.Array | None, batch: tuple[int, ...]
) -> jax.Array | None:
    if lengths is None:
        return None
    lengths = as_bound(f"{function}: {name}", lengths)
    if not batch and lengths.shape == (1,):  # what jax.nn takes without a batch
        lengths = lengths.reshape(())
    if lengths.shape != batch:
        raise ValueError(
            f"{function}: {name} must be [*B] = {list(batch)}, got {list(lengths.shape)}."
        )
    return lengths


def _as_window(function: str, window: int | WindowBounds | None) -> WindowBounds | None:
    if window is None:
        return None
    sides = tuple(window) if isinstance(window, tuple | list) else (window, window)
    for side in sides:
        if side is not None and not _is_integer(side):
            raise TypeError(f"{function}: local_window_size must be whole numbers, got {window}.")
    known = (side for side in sides if side is not None and not isinstance(side, jax.core.Tracer))
    if len(sides) != 2 or any(jnp.ndim(side) != 0 or side < 0 for side in known):
        raise ValueError(
            f"{function}: local_window_size must be (left, right) or one number for both, "
            f"in tokens, at least 0, got {window}."
        )
    if all(side is None for side in sides):
        return None
    left, right = (_as_bound(side) for side in sides)
    return left, right


def _as_bound(side: int | jax.Array | None) -> int | jax.Array | None:
    """A known number stays a Python number, so that the block map of the window is known too."""
    if side is None or isinstance(side, jax.core.Tracer):
        return side if side is None else saturate(side)
    return int(side)


def _is_integer(number: Any) -> bool:
    dtype = getattr(number, "dtype", None)
    return type(number) is int if dtype is None else jnp.issubdtype(dtype, jnp.integer)


def _check_plan(function: str, plan: Any, shape: tuple[int, ...], whole: bool) -> None:
    """Raise unless a plan fits; `whole` tells whether its mask is all that hides keys."""
    if not whole:
        raise ValueError(
            f"{function}: a plan describes one Mask, and cannot be combined with is_causal, "
            f"local_window_size, lengths or a boolean array. Put them into the mask before "
            f"make_plan: masks.Causal() & masks.Padding()."
        )
    if not isinstance(plan, Plan):
        raise TypeError(f"{function}: plan must be a Plan, got {type(plan).__name__}.")
    if plan.lengths != shape[-2:]:
        raise ValueError(
            f"{function}: the plan was made for [T, S] = {list(plan.lengths)}, the attention has "
            f"{list(shape[-2:])}. Make it with make_plan(mask, query_coords, key_coords)."
        )
    if not broadcasts_to(plan.kinds.shape[:-2], shape[:-2]):
        raise ValueError(
            f"{function}: the plan must broadcast to [*B, N] = {list(shape[:-2])}, "
            f"got {list(plan.kinds.shape[:-2])}."
        )
