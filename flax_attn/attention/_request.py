"""The arguments of `dot_product_attention`, checked and brought into canonical form."""

import functools
import inspect
import math
import operator
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
    statistics_dtype,
    warn,
)
from flax_attn._functions import kind_of
from flax_attn._integers import as_bound, as_ids, saturate
from flax_attn._jax import varying_axes
from flax_attn.attention._blocks import is_sparse
from flax_attn.attention._counted import check_within_shard_map, refuse_to_guess, warn_of_corner
from flax_attn.attention._parts import check_numbers_of_heads, check_sizes, name_all_axes
from flax_attn.attention._problem import Problem, is_aligned
from flax_attn.attention._trial import try_out
from flax_attn.attention.dropout import Dropout, check_dropout
from flax_attn.coords import Aligned, Coords, to_record
from flax_attn.masks import Causal, Dense, Full, Mask, Plan, Window
from flax_attn.masks._mask import how_to_mask
from flax_attn.normalizers import Normalizer, Sigmoid, Softmax, check_normalizer
from flax_attn.scores import Bias, ScoreMod
from flax_attn.scores import score_mod as make_score_mod
from flax_attn.scores._score_mod import how_to_modify

Sides = tuple[int | jax.Array | None, int | jax.Array | None]


def check_options(function: str, options: dict[str, Any]) -> None:
    """Raise if `options` holds a name that attention does not know."""
    known = inspect.signature(check_request).parameters
    for name in options:
        if name not in known:
            raise TypeError(f"{function}: {name!r} is not an option of dot_product_attention here.")


def check_request(
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
    local_window_size: int | Sides | None = None,
    score_mod: ScoreMod | None = None,
    normalizer: Normalizer = Softmax(),
    dropout: Dropout | None = None,
    query_coords: Coords | None = None,
    key_coords: Coords | None = None,
    head_ids: jax.Array | None = None,
    plan: Plan | None = None,
    precision: lax.PrecisionLike = None,
) -> Problem:
    """Check the arguments of `function` and bring them into canonical form."""
    query = as_floating(function, "query", query)
    key = as_floating(function, "key", key)
    value = None if value is None else as_floating(function, "value", value)
    bias = None if bias is None else _as_bias(function, bias)
    check_known(function, "is_causal", is_causal)
    _check_arrays(function, query, key, value)
    value = key if value is None else value
    batch, (length_q, num_heads, head_dim) = query.shape[:-3], query.shape[-3:]
    length_k = key.shape[-3]
    weights_shape = (*batch, num_heads, length_q, length_k)
    if scale is not None and jnp.ndim(scale) != 0:
        raise ValueError(
            f"{function}: scale must be one number, got shape {list(jnp.shape(scale))}. "
            f"Multiply the query instead: query * scale."
        )
    check_normalizer(function, normalizer, num_heads)
    if head_ids is None:
        for part in (mask, score_mod):
            check_numbers_of_heads(function, part, num_heads)
    head_ids_given = head_ids is not None
    head_ids = (
        lax.iota(jnp.int32, num_heads)
        if head_ids is None
        else saturate(as_ids(f"{function}: head_ids", head_ids))
    )
    if head_ids.shape != (num_heads,):
        raise ValueError(
            f"{function}: head_ids must be [N] = [{num_heads}], got {list(head_ids.shape)}."
        )
    check_dropout(function, dropout, batch)

    given = mask if isinstance(mask, Mask) else None
    masks = [_as_mask(function, mask, weights_shape)] if mask is not None else []
    if is_causal:
        masks.append(Causal())
    if (window := _check_window(function, local_window_size)) is not None:
        masks.append(Window(*window))
    everyone = functools.reduce(operator.and_, masks) if masks else Full()

    mods: list[ScoreMod] = []
    if bias is not None:
        bias = _check_broadcast(function, "bias", bias, weights_shape)
        mods.append(Bias(bias))
    if score_mod is not None:
        if not isinstance(score_mod, ScoreMod):
            raise TypeError(
                f"{function}: score_mod must be a ScoreMod, got {kind_of(score_mod)}. "
                f"{how_to_modify(score_mod)}"
            )
        mods.append(_align(function, score_mod, weights_shape))
    if isinstance(normalizer, Sigmoid):
        of_heads = jnp.asarray(normalizer.bias).reshape((1,) * len(batch) + (-1,))
        mods.append(make_score_mod(_shift, bias=Aligned(of_heads, "bn")))
    modify = functools.reduce(operator.rshift, mods) if mods else None

    lengths = {"query": query_seq_lengths, "key_value": key_value_seq_lengths}
    lengths = {
        side: _check_lengths(function, f"{side}_seq_lengths", x, batch)
        for side, x in lengths.items()
    }
    sides = {"query": (query_coords, length_q), "key": (key_coords, length_k)}
    fields = {
        side: _fields(function, side, coords, length, weights_shape)
        for side, (coords, length) in sides.items()
    }
    for side, x, letter in (("query", lengths["query"], "t"), ("key", lengths["key_value"], "s")):
        if x is not None:
            valid = fields[side].get("valid")
            fields[side]["valid"] = _within(x, sides[side][1], valid, letter)

    complete = given is not None and len(masks) == 1 and all(x is None for x in lengths.values())
    hides = bool(masks) or modify is not None or any("valid" in f for f in fields.values())
    rank = (1,) * len(batch)
    sink = isinstance(normalizer, Softmax) and normalizer.sink is not None
    problem = Problem(
        query=Aligned(query, "btnd"),
        key=Aligned(key, "bskd"),
        value=Aligned(value, "bskd"),
        scale=head_dim**-0.5 if scale is None else scale,
        mask=everyone,
        score_mod=modify,
        query_fields=fields["query"],
        key_fields=fields["key"],
        head_ids=Aligned(head_ids.reshape(*rank, num_heads), "bn"),
        batch_ids=Aligned(_batch_ids(dropout, batch), "b"),
        drop=None if dropout is None else (_constant(dropout.rate), dropout.seed()),
        query_numbers=None if dropout is None else _numbers(function, "query", sides, batch),
        key_numbers=None if dropout is None else _numbers(function, "key", sides, batch),
        shared_drop=dropout is not None and dropout.broadcast,
        plan=_check_plan(function, plan, weights_shape, complete),
        plan_block=None if plan is None else plan.block,
        hides=hides,
        sparse=is_sparse(
            everyone, (length_q, length_k), (query_coords, key_coords) != (None, None)
        ),
        normalizer=_without_leaves(normalizer),
        precision=precision,
        output_dtype=statistics_dtype(query.dtype) if sink else query.dtype,
    )
    try_out(function, problem)
    counted = query_coords is None or key_coords is None
    if counted and length_q != length_k:
        if given is not None:
            refuse_to_guess(function, given, problem)
        elif masks[mask is not None :]:
            warn_of_corner(function, problem)
    if axes := varying_axes(query):
        check_within_shard_map(function, problem, axes, dropout, head_ids_given, counted)
    return problem


def _as_mask(function: str, mask: Any, shape: tuple[int, ...]) -> Mask:
    """A mask whose arrays have all axes."""
    if isinstance(mask, Mask):
        return _align(function, mask, shape)
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
    array = _check_broadcast(function, "mask", jnp.asarray(mask), shape)
    assert array is not None
    return Dense(array)


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


def check_known(function: str, name: str, value: bool) -> None:
    """Raise unless a switch is known while the program is traced."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{function}: {name} must be a Python bool, got a traced array. Make it static, "
            f"jax.jit(function, static_argnames={name!r}), or set it inside the function."
        )
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False, got {value!r}.")


def _align(function: str, part: Any, shape: tuple[int, ...]) -> Any:
    """Give the arrays within a mask or score modifier all batch axes."""
    batch_ndim = len(shape) - 3

    def align(x: Any) -> Any:
        if not is_aligned(x):
            return x
        axes, array = name_all_axes(function, part, x)
        full = batch_ndim + len(axes) - 1
        if array.ndim > full:
            raise ValueError(
                f"{function}: an array of {type(part).__name__} has the shape {list(array.shape)}, "
                f"which has more than the {batch_ndim} batch axes of the query."
            )
        array = expand_rank(array, full)
        if axes == "bnts":
            _check_broadcast(function, f"the array in {part!r}", array, shape)
        else:
            check_sizes(function, part, axes, array, shape)
        return Aligned(array, axes)

    return jax.tree.map(align, part, is_leaf=is_aligned)


def _fields(
    function: str,
    side: str,
    coords: Coords | None,
    length: int,
    shape: tuple[int, ...],
) -> dict[str, Aligned]:
    """The fields of one side, `[*B | 1, N | 1, T]`."""
    letter = "t" if side == "query" else "s"
    if coords is None:
        positions = lax.iota(jnp.int32, length).reshape((1,) * (len(shape) - 2) + (-1,))
        return {"positions": Aligned(positions, "bn" + letter)}
    if not isinstance(coords, Coords):
        raise TypeError(
            f"{function}: {side}_coords must be Coords, got {type(coords).__name__}. Wrap "
            f"positions: Coords(positions)."
        )
    if coords.positions.shape[-1] != length:
        raise ValueError(
            f"{function}: {side}_coords must have the {length} tokens of the {side}, "
            f"got {coords.positions.shape[-1]}."
        )
    batch, num_heads = shape[:-3], shape[-3]
    record = to_record(coords, side, len(batch))
    fields = {}
    for name in coords.fields():
        array = jnp.squeeze(getattr(record, name), -1 if side == "query" else -2)
        if not broadcasts_to(array.shape, (*batch, num_heads, length)):
            raise ValueError(
                f"{function}: {name} of {side}_coords must broadcast to [*B, N, T] = "
                f"{[*batch, num_heads, length]}, got {list(array.shape)}."
            )
        fields[name] = Aligned(array, "bn" + letter)
    return fields


def _numbers(function: str, side: str, sides: dict[str, Any], batch: tuple[int, ...]) -> Aligned:
    """The number of each token of one side in its sequence, `[*B | 1, 1, T]`."""
    coords, length = sides[side]
    letter = "t" if side == "query" else "s"
    if coords is None:
        numbers = lax.iota(jnp.int32, length).reshape((1,) * (len(batch) + 1) + (-1,))
        return Aligned(numbers, "bn" + letter)
    if varying_axes(coords.positions) - varying_axes(coords.numbers):
        raise ValueError(
            f"{function}: dropout needs the number of each token in its whole sequence, which "
            f"Coords(positions) within shard_map cannot know. Give {side}_coords = "
            f"Coords(positions, numbers=jnp.arange({length})) where each device has whole "
            f"sequences, numbers=jnp.arange({length}) + {length} * jax.lax.axis_index(axis_name) "
            f"where it has a part of them."
        )
    if not broadcasts_to(coords.numbers.shape, (*batch, length)):
        raise ValueError(
            f"{function}: numbers of {side}_coords must broadcast to [*B, T] = "
            f"{[*batch, length]}, got {list(coords.numbers.shape)}."
        )
    return Aligned(expand_rank(coords.numbers, len(batch) + 1)[..., None, :], "bn" + letter)


def _constant(rate: float | jax.Array) -> float | jax.Array:
    """A rate without derivatives: `with_rate` has them."""
    return lax.stop_gradient(rate) if isinstance(rate, jax.Array) else rate


def _within(lengths: jax.Array, length: int, valid: Aligned | None, letter: str) -> Aligned:
    """Which tokens count, `[*B, 1, T]`."""
    index = lax.iota(jnp.int32, length).reshape((1,) * (lengths.ndim + 1) + (-1,))
    within = index < lengths[..., None, None]
    return Aligned(within if valid is None else within & valid.values, "bn" + letter)


def _shift(scores: jax.Array, q: Any, k: Any, head_ids: jax.Array, *, bias: Any) -> jax.Array:
    """s + b, for one b or one for each head that is here."""
    del q, k, head_ids
    return scores + bias.values[..., None, None].astype(scores.dtype)


def _check_plan(
    function: str, plan: Plan | None, shape: tuple[int, ...], complete: bool
) -> Aligned | None:
    if plan is None:
        return None
    if not complete:
        raise ValueError(
            f"{function}: a plan belongs to one Mask, and skips what it calls full; it knows "
            f"nothing of is_causal, local_window_size, lengths or a boolean array. Say all of it "
            f"in the mask that the plan was made of: masks.Causal() & masks.Padding()."
        )
    if not isinstance(plan, Plan):
        raise TypeError(f"{function}: plan must be a Plan, got {type(plan).__name__}.")
    if plan.lengths != shape[-2:]:
        raise ValueError(
            f"{function}: the plan was made for [T, S] = {list(plan.lengths)}, the attention has "
            f"{list(shape[-2:])}. Make it with make_plan(mask, query_coords, key_coords)."
        )
    kinds = expand_rank(plan.kinds, len(shape))
    if not broadcasts_to(kinds.shape[:-2], shape[:-2]):
        raise ValueError(
            f"{function}: the plan must broadcast to [*B, N] = {list(shape[:-2])}, "
            f"got {list(kinds.shape[:-2])}."
        )
    return Aligned(kinds, "bnxy")


def _batch_ids(dropout: Dropout | None, batch: tuple[int, ...]) -> jax.Array:
    if dropout is None or dropout.batch_ids is None:
        return lax.iota(jnp.int32, math.prod(batch)).reshape(batch)
    return saturate(as_ids("Dropout: batch_ids", dropout.batch_ids)).reshape(batch)


def _without_leaves(normalizer: Normalizer) -> Normalizer:
    """The normaliser as a setting: its sink is applied outside, its bias is a score modifier."""
    if isinstance(normalizer, Softmax):
        return Softmax()
    if isinstance(normalizer, Sigmoid):
        return Sigmoid()
    return normalizer


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


def _check_broadcast(
    function: str, name: str, array: jax.Array | None, shape: tuple[int, ...]
) -> jax.Array | None:
    if array is None:
        return None
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


def _check_lengths(
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


def _check_window(function: str, window: int | Sides | None) -> Sides | None:
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
    left, right = (_as_side(side) for side in sides)
    return left, right


def _as_side(side: int | jax.Array | None) -> int | jax.Array | None:
    """A known number stays one, so that the block map of the window is known, too."""
    if side is None or isinstance(side, jax.core.Tracer):
        return side if side is None else saturate(side)
    return int(side)


def _is_integer(number: Any) -> bool:
    dtype = getattr(number, "dtype", None)
    return type(number) is int if dtype is None else jnp.issubdtype(dtype, jnp.integer)
