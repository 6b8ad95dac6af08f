"""An `attention_fn` for Flax's own multi-head attention."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import expand_rank
from flax_attn.attention._flax_masks import as_boolean
from flax_attn.attention.dot_product import dot_product_attention
from flax_attn.attention.dropout import Dropout
from flax_attn.attention.weights import attention_weights
from flax_attn.masks import Dense, Mask

_WEIGHTS_OPTIONS = (
    "scale",
    "query_seq_lengths",
    "key_value_seq_lengths",
    "local_window_size",
    "score_mod",
    "normalizer",
    "query_coords",
    "key_coords",
    "head_ids",
)


def _refuse_arrays(
    function: Callable[..., Callable[..., jax.Array]],
) -> Callable[..., Callable[..., jax.Array]]:
    """Make `function` raise a helpful error when it is called with queries, keys and values."""

    @functools.wraps(function)
    def call(*arrays: Any, **options: Any) -> Callable[..., jax.Array]:
        if arrays:
            raise TypeError(
                f"{function.__name__}: options are passed by name, got {len(arrays)} arguments by "
                f"position. It makes the function that takes arrays: attention_fn=attention_fn()."
            )
        return function(**options)

    return call


@_refuse_arrays
def attention_fn(**options: Any) -> Callable[..., jax.Array]:
    """Make an `attention_fn` for Flax's own `MultiHeadAttention`, in Linen or NNX.

    The function takes every keyword that Flax passes, computes what Flax's `dot_product_attention`
    computes, and raises where it cannot. If a mask is given here too, both must allow a pair;
    biases are added.

    Do not pass `flax_attn.dot_product_attention` itself as `attention_fn`: it does not take Flax's
    keywords. Flax's NNX module raises then. Its Linen module passes only the keywords of the
    signature, so dropout would be left out.

    Args:
      **options: Passed on to `dot_product_attention`: `scale`, `is_causal`, `local_window_size`,
        `normalizer`, `implementation`, ...

    Returns:
      A function of `query, key, value` `[*B, T, N, D]` and Flax's keywords.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from flax_attn import attention
      >>> layer = nn.MultiHeadAttention(num_heads=4, attention_fn=attention.attention_fn())
      >>> x = jnp.ones((2, 10, 32))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (2, 10, 32)
    """
    known = inspect.signature(dot_product_attention).parameters
    for name in options:
        if name not in known or name in ("query", "key", "value", "dropout", "return_residual"):
            raise TypeError(
                f"attention_fn: {name!r} is not an option; Flax passes the dropout, and there is "
                f"no place for a residual."
            )
    causal = options.pop("is_causal", False)
    own_mask = as_boolean("attention_fn", options.pop("mask", None))
    own_bias = options.pop("bias", None)
    own_precision = options.pop("precision", None)
    weights_options: dict[str, Any] = {
        name: options[name] for name in _WEIGHTS_OPTIONS if name in options
    }

    # Linen passes only those keywords that it finds in the signature.
    def attend(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: lax.PrecisionLike = None,
        module: Any = None,
        force_fp32_for_softmax: bool = False,
        einsum_dot_general: Callable[..., jax.Array] | None = None,
        qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
        attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
        promote_dtype: Callable[..., Any] | None = None,
        is_causal: bool = False,
        input_positions: jax.Array | None = None,
    ) -> jax.Array:
        del force_fp32_for_softmax  # it always is
        if qk_attn_weights_einsum is not None or attn_weights_value_einsum is not None:
            raise NotImplementedError(
                "attention_fn: an einsum of your own (qk_attn_weights_einsum_cls, "
                "attn_weights_value_einsum_cls) is not supported. Leave both out."
            )
        if einsum_dot_general not in (None, lax.dot_general):
            raise NotImplementedError(
                "attention_fn: einsum_dot_general is not supported: scores and output are computed "
                "tile by tile. Leave it out; precision reaches both products."
            )
        if input_positions is not None:
            raise NotImplementedError(
                "attention_fn: input_positions is for rotary embeddings, which are not part of "
                "this version. Give positions that masks compare as "
                "attention_fn(query_coords=Coords(positions), key_coords=Coords(positions))."
            )
        if promote_dtype is not None:
            query, key, value = promote_dtype((query, key, value), dtype=dtype)
        else:
            if dtype is None:
                dtype = jnp.promote_types(jnp.promote_types(query.dtype, key.dtype), value.dtype)
            query, key, value = (array.astype(dtype) for array in (query, key, value))
        mask = as_boolean("attention_fn", mask)
        biases = [expand_rank(b, query.ndim) for b in (own_bias, bias) if b is not None]
        common: dict[str, Any] = {
            "mask": _both(own_mask, mask, query.ndim),
            "bias": functools.reduce(jnp.add, biases) if biases else None,
            "is_causal": causal or is_causal,
            "precision": own_precision if precision is None else precision,
        }
        if module is not None:
            weights = attention_weights(query, key, **(weights_options | common))
            module.sow("intermediates", "attention_weights", weights)
        if not 0 <= dropout_rate < 1:
            raise ValueError(
                f"attention_fn: dropout_rate must lie in [0, 1), got {dropout_rate}. It is the "
                f"probability that a weight is dropped."
            )
        if dropout_rate > 0 and not deterministic:
            if dropout_rng is None:
                raise ValueError(
                    f"attention_fn: dropout_rng must be a key for dropout_rate = {dropout_rate}. "
                    f"Pass rngs={{'dropout': key}}, or deterministic=True."
                )
            common["dropout"] = Dropout(dropout_rate, dropout_rng, broadcast=broadcast_dropout)
        return dot_product_attention(query, key, value, **(options | common))

    return attend


def _both(
    own: Mask | jax.Array | None, given: Mask | jax.Array | None, ndim: int
) -> Mask | jax.Array | None:
    """A pair is visible if both allow it."""
    if own is None or given is None:
        return given if own is None else own
    if isinstance(own, Mask) or isinstance(given, Mask):
        first, second = (m if isinstance(m, Mask) else Dense(m) for m in (own, given))
        return first & second
    return expand_rank(own, ndim) & expand_rank(given, ndim)
