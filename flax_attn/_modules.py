"""What the Linen and NNX modules share: multi-head attention, and attention weights to sow."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flax_attn._checks import as_integer, check_array, check_maps
from flax_attn._jax import varying_axes
from flax_attn.attention import Dropout, attention_weights, dot_product_attention
from flax_attn.attention._flax_masks import as_boolean
from flax_attn.caches import KVCache
from flax_attn.coords import Coords
from flax_attn.masks import Dense, Mask
from flax_attn.normalizers import Normalizer, Softmax
from flax_attn.scores import ScoreMod

MODULE = "MultiHeadAttention"
MASK_BY_NAME = "(A mask is passed by name: mask=mask.)"


class HeadSizes(NamedTuple):
    """The number of key and value heads, and the head sizes."""

    num_kv_heads: int
    head_dim: int
    value_head_dim: int


def head_sizes(
    in_features: int,
    num_heads: int,
    num_kv_heads: int | None,
    qkv_features: int | None,
    head_dim: int | None,
    value_head_dim: int | None,
    axis_name: str | None,
) -> HeadSizes:
    """Fill in the sizes that are left out, and check all of them."""
    numbers = {"num_kv_heads": num_kv_heads, "qkv_features": qkv_features, "head_dim": head_dim}
    for name, number in {"num_heads": num_heads, **numbers}.items():
        if number is not None:
            as_integer(MODULE, name, number)
    if num_heads < 1:
        raise ValueError(f"{MODULE}: num_heads must be at least 1, got {num_heads}.")
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"{MODULE}: num_heads must be a multiple of num_kv_heads, "
            f"got {num_heads} and {num_kv_heads}."
        )
    if head_dim is None:
        if axis_name is not None and qkv_features is None:
            raise ValueError(
                f"{MODULE}: head_dim must be given with axis_name, because num_heads = {num_heads} "
                f"counts the heads of one device only."
            )
        features = in_features if qkv_features is None else qkv_features
        if features % num_heads:
            raise ValueError(
                f"{MODULE}: qkv_features must be a multiple of num_heads, got {features} and "
                f"{num_heads}. Give head_dim to choose the head size freely."
            )
        head_dim = features // num_heads
    elif qkv_features not in (None, num_heads * head_dim):
        raise ValueError(
            f"{MODULE}: qkv_features must be num_heads * head_dim = {num_heads} * {head_dim}, "
            f"got {qkv_features}. Leave one of them out."
        )
    value_head_dim = head_dim if value_head_dim is None else value_head_dim
    for name, size in (("head_dim", head_dim), ("value_head_dim", value_head_dim)):
        if size < 1:
            raise ValueError(f"{MODULE}: {name} must be at least 1, got {size}.")
    return HeadSizes(num_kv_heads, head_dim, value_head_dim)


def check_dropout_rate(rate: float) -> None:
    """Raise unless the rate is a probability below 1."""
    if not 0 <= rate < 1:
        raise ValueError(
            f"{MODULE}: dropout_rate must lie in [0, 1), got {rate}. It is the probability that a "
            f"weight is dropped."
        )


def check_norm(normalize_qk: bool | str) -> None:
    """Raise unless it says which norm queries and keys have."""
    if normalize_qk not in (True, False, "layer", "rms"):
        raise ValueError(
            f'{MODULE}: normalize_qk must be "layer" (or True), "rms" or False, got '
            f"{normalize_qk!r}."
        )


def check_parts(mask: Any, normalizer: Normalizer | None, sink: bool) -> None:
    """Raise unless the mask of the constructor is a `Mask`, and there is one normaliser at most."""
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(
            f"{MODULE}: mask of the constructor must be a Mask, got {type(mask).__name__}. Wrap an "
            f"array: masks.Dense(mask). Or pass it at the call."
        )
    if sink and normalizer is not None:
        raise ValueError(
            f"{MODULE}: sink=True makes the normaliser Softmax(sink), so normalizer must be left "
            f"out, got {normalizer!r}."
        )


def with_sink(normalizer: Normalizer | None, sink: jax.Array | None) -> Normalizer | None:
    """Softmax with the module's own sink, or the normaliser that was given."""
    return normalizer if sink is None else Softmax(sink)


def check_key_value(key_value: Any, shares_key_value: bool, **inputs: Any) -> None:
    """Raise unless keys and values come from one place."""
    if key_value is None and shares_key_value:
        raise ValueError(
            f"{MODULE}: key_value must be given with shares_key_value=True, as the module has no "
            f"projections of keys and values. Call the other layer with return_key_value=True, or "
            f"pass key_value=(new.keys, new.values), key_coords=new.coords and "
            f"query_coords=old.next_coords(T), where old is its cache before the call and new the "
            f"one after it."
        )
    for name in [name for name, x in inputs.items() if x is not None and key_value is not None]:
        raise ValueError(
            f"{MODULE}: {name} must not be given with key_value, which holds the keys and values. "
            f"Leave one of them out."
        )


def joined_mask(own: Mask | None, given: Mask | jax.Array | None) -> Mask | jax.Array | None:
    """The mask of the module and that of the call: a query attends where both are True."""
    given = as_boolean(MODULE, given)
    if own is None or given is None:
        return given if own is None else own
    return own & (given if isinstance(given, Mask) else Dense(given))


def joined_score_mod(own: ScoreMod | None, given: ScoreMod | None) -> ScoreMod | None:
    """The score modifier of the module, then that of the call."""
    if own is None or given is None:
        return given if own is None else own
    return own >> given


class _FlaxCache(KVCache):
    """A cache of Flax's variables, whose errors name what Flax's users can change."""

    def _function(self, method: str) -> str:
        del method
        return MODULE

    def _dtype_fix(self, dtype: Any) -> str:
        return (
            f"Make the cache with that dtype: init_cache(input_shape, dtype={dtype}) in NNX, init "
            f"with such inputs in Linen."
        )

    def _check_fit(self, fits: jax.Array, message: Callable[[], str]) -> jax.Array:
        del message
        if not isinstance(fits, jax.core.Tracer) and not np.all(fits):
            raise ValueError(
                f"{MODULE}: the tokens do not fit: the cache holds {int(np.max(self.lengths))} "
                f"tokens of at most {self.capacity}. Make it for longer inputs: init_cache in NNX, "
                f"init in Linen; or use cache= with flax_attn.caches.RollingCache."
            )
        return self.overflowed | ~fits


def flax_cache(cached_key: jax.Array, cached_value: jax.Array, cache_index: jax.Array) -> KVCache:
    """Flax's variables, which all sequences fill alike, as a cache.

    Args:
      cached_key: `[*B, S, K, D]`.
      cached_value: `[*B, S, K, Dv]`.
      cache_index: How many tokens there were so far. Above S, some did not fit.
    """
    *batch, capacity, _, _ = cached_key.shape
    slots = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (*batch, capacity))
    lengths = jnp.broadcast_to(cache_index, tuple(batch))
    return _FlaxCache(
        jnp.swapaxes(cached_key, -3, -2),
        jnp.swapaxes(cached_value, -3, -2),
        {"positions": slots},
        lengths,
        lengths > capacity,
    )


def check_decoding(**given: Any) -> None:
    """Raise if something is given that `decode=True` stands for, or cannot honour."""
    for name in [name for name, x in given.items() if x is not None and x is not False]:
        raise ValueError(
            f"{MODULE}: {name} must not be given with decode=True, which keeps keys and values in "
            f"Flax's variables, in the order of the calls. Use decode=False and cache=, of "
            f"flax_attn.caches."
        )


def refuse_einsum(*einsum_classes: Any) -> None:
    """Raise if the caller passes an einsum for scores or output."""
    if any(cls is not None for cls in einsum_classes):
        raise NotImplementedError(
            f"{MODULE}: qk_attn_weights_einsum_cls and attn_weights_value_einsum_cls are not part "
            f"of this version. Leave both out, or pass an attention_fn of your own."
        )


def resolve_inputs(
    inputs_q: jax.Array,
    inputs_k: jax.Array | None,
    inputs_v: jax.Array | None,
    inputs_kv: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The inputs of keys and values; by default those of queries and of keys."""
    if inputs_kv is not None:
        if inputs_k is not None or inputs_v is not None:
            raise ValueError(
                f"{MODULE}: inputs_kv was given with inputs_k or inputs_v. It stands for both: "
                f"pass inputs_k and inputs_v alone."
            )
        inputs_k = inputs_kv
    if inputs_k is None and inputs_v is not None:
        raise ValueError(
            f"{MODULE}: inputs_v was given without inputs_k. Pass inputs_k; the values then "
            f"default to it. {MASK_BY_NAME}"
        )
    inputs_k = inputs_q if inputs_k is None else inputs_k
    inputs_v = inputs_k if inputs_v is None else inputs_v
    check_array(MODULE, "inputs_q", inputs_q)
    for name, inputs in (("inputs_k", inputs_k), ("inputs_v", inputs_v)):
        _refuse_mask(name, inputs, inputs_q.ndim)
        check_array(MODULE, name, inputs)
    return inputs_k, inputs_v


def _refuse_mask(name: str, inputs: Any, ndim: int) -> None:
    """Raise if a mask was passed by position, in place of keys or values."""
    error: type[Exception]
    if isinstance(inputs, Mask):
        error, got = TypeError, repr(inputs)
    elif getattr(inputs, "dtype", None) == jnp.bool_:
        error, got = TypeError, f"bool {list(inputs.shape)}"
    elif getattr(inputs, "ndim", ndim) > ndim:
        error, got = ValueError, str(list(inputs.shape))
    else:
        return
    raise error(
        f"{MODULE}: {name} must be features of tokens, of the rank {ndim} of inputs_q, got {got}. "
        f"{MASK_BY_NAME}"
    )


def make_dropout(
    rate: float, key: jax.Array, broadcast: bool, inputs: jax.Array, batch_axis_name: str | None
) -> Dropout:
    """Dropout that numbers batch elements across all devices of `batch_axis_name`."""
    if batch_axis_name is None:
        return Dropout(rate, key, broadcast=broadcast)
    count = math.prod(inputs.shape[:-2])
    batch_ids = lax.axis_index(batch_axis_name) * count + jnp.arange(count)
    return Dropout(rate, key, broadcast=broadcast, batch_ids=batch_ids)


def attention_options(
    mask: Mask | jax.Array | None, num_heads: int, axis_name: str | None, **options: Any
) -> dict[str, Any]:
    """The options of `attention_fn`, without those that are None or False."""
    head_ids = None
    if axis_name is not None:
        head_ids = lax.axis_index(axis_name) * num_heads + jnp.arange(num_heads)
    given = {"mask": mask, "head_ids": head_ids, **options}
    return {
        name: value for name, value in given.items() if value is not None and value is not False
    }


def adapted(
    attention_fn: Callable[..., jax.Array],
    *axis_names: str | None,
    input_positions: jax.Array | None = None,
) -> Callable[..., jax.Array]:
    """`attention_fn` with inputs of one dtype, and with the keywords that it takes.

    Flax's functions, and functions with Flax's keywords, receive dropout through those keywords.
    Options that a function does not take are refused.

    Args:
      attention_fn: The function.
      *axis_names: Axes of a surrounding `shard_map` that split heads or batch, not the sequence.
      input_positions: Passed on, if given.
    """
    check_maps(MODULE, attention_fn=attention_fn)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
        if not query.dtype == key.dtype == value.dtype:
            dtype = jnp.result_type(query, key, value)
            query, key, value = (array.astype(dtype) for array in (query, key, value))
        own = dot_product_attention in (attention_fn, getattr(attention_fn, "__wrapped__", None))
        if input_positions is not None:
            options["input_positions"] = input_positions
        axes = varying_axes(query)
        if own and axes and axes <= {*axis_names}:
            options = _numbered(query, key, options)
        return attention_fn(query, key, value, **_keywords_for(attention_fn, options))

    return attend


def _numbered(query: jax.Array, key: jax.Array, options: dict[str, Any]) -> dict[str, Any]:
    """The options, where heads, batch elements and tokens are numbered as on one device."""
    *batch, length_q, num_heads, _ = query.shape
    numbers: dict[str, Any] = {"head_ids": jnp.arange(num_heads)}
    if length_q == key.shape[-3]:
        numbers |= dict.fromkeys(("query_coords", "key_coords"), Coords.arange(length_q))
    dropout = options.get("dropout")
    if dropout is not None and dropout.batch_ids is None:
        numbers["dropout"] = dataclasses.replace(dropout, batch_ids=jnp.arange(math.prod(batch)))
        options = options | {"dropout": None}
    return options | {name: x for name, x in numbers.items() if options.get(name) is None}


def _keywords_for(
    attention_fn: Callable[..., jax.Array], options: dict[str, Any]
) -> dict[str, Any]:
    try:
        parameters = inspect.signature(attention_fn).parameters
    except (TypeError, ValueError):  # not every callable has one
        return options
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    flax = _is_of_flax(attention_fn) or (
        "dropout" not in parameters and "dropout_rng" in parameters
    )
    name = getattr(attention_fn, "__qualname__", repr(attention_fn))
    if flax and (dropout := options.get("dropout")) is not None:
        if dropout.batch_ids is not None:
            raise NotImplementedError(
                f"{MODULE}: batch_axis_name needs attention_fn = flax_attn.dot_product_attention "
                f"for dropout, got {name}, which does not know the numbers of batch elements."
            )
        options = {key: option for key, option in options.items() if key != "dropout"} | {
            "dropout_rate": dropout.rate,
            "dropout_rng": dropout.key,
            "broadcast_dropout": dropout.broadcast,
            "deterministic": False,
        }
    if _is_of_flax(attention_fn) and isinstance(options.get("mask"), Mask):
        raise TypeError(
            f"{MODULE}: a Mask needs attention_fn = flax_attn.dot_product_attention, got {name}. "
            f"Pass mask as a boolean array."
        )
    unknown = [key for key in options if key not in parameters]
    if unknown and not takes_all:
        raise TypeError(
            f"{MODULE}: {', '.join(unknown)} was given, which attention_fn = {name} does not take. "
            f"Leave it out, or use flax_attn.dot_product_attention."
        )
    return options


def _is_of_flax(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", "").partition(".")[0] == "flax"


def with_weights(
    attention_fn: Callable[..., jax.Array], sow: Callable[[str, jax.Array], Any]
) -> Callable[..., jax.Array]:
    """A function that calls `attention_fn` and also sows the weights."""
    if attention_fn is not dot_product_attention:
        raise NotImplementedError(
            f"{MODULE}: sow_weights needs attention_fn = flax_attn.dot_product_attention, "
            f"got {attention_fn}. Call attention_weights inside your own function."
        )

    @functools.wraps(attention_fn)
    def attend(query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
        known = {
            name: option
            for name, option in options.items()
            if name not in ("dropout", "plan", "implementation", "placement")
        }
        placement = options.get("placement")
        if placement is not None and placement.is_local:
            raise NotImplementedError(
                f"{MODULE}: sow_weights needs the keys of all devices, and {placement!r} gives a "
                f"device one block after the other. Use {placement!r}.on(mesh), or no placement."
            )
        sow("attention_weights", attention_weights(query, key, **known))
        return attention_fn(query, key, value, **options)

    return attend


def summed_over(
    axis_name: str | None, dot_general: Callable[..., jax.Array] | None
) -> Callable[..., jax.Array] | None:
    """A dot product that sums over `axis_name`, which splits the contracted heads."""
    if axis_name is None:
        return dot_general
    local = lax.dot_general if dot_general is None else dot_general

    def summed(*args: Any, **kwargs: Any) -> jax.Array:
        return lax.psum(local(*args, **kwargs), axis_name)

    return summed
