"""One attention problem, checked: what every implementation is given."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import as_floating, broadcasts_to, expand_rank, statistics_dtype
from flax_attn.attention.dropout import Dropout
from flax_attn.normalizers import Softmax

Window = tuple[int | jax.Array | None, int | jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `dot_product_attention` after checking, in one form.

    `bias` and `mask` have all axes `[*B, N, T, S]`, each full or of size 1.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array | None
    bias: jax.Array | None
    mask: jax.Array | None
    scale: float | jax.Array
    is_causal: bool
    query_seq_lengths: jax.Array | None
    key_value_seq_lengths: jax.Array | None
    window: Window | None
    normalizer: Softmax
    dropout: Dropout | None
    head_ids: jax.Array
    precision: lax.PrecisionLike

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading shape `*B`."""
        return self.query.shape[:-3]

    @property
    def scores_dtype(self) -> jnp.dtype:
        """The dtype of scores, statistics and accumulators."""
        return statistics_dtype(self.query.dtype)


def check_request(
    function: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    scale: float | jax.Array | None,
    is_causal: bool,
    query_seq_lengths: jax.Array | None,
    key_value_seq_lengths: jax.Array | None,
    local_window_size: int | Window | None,
    normalizer: Softmax,
    dropout: Dropout | None,
    head_ids: jax.Array | None,
    precision: lax.PrecisionLike,
) -> Request:
    """Check the arguments of `function` and bring them into one form."""
    query = as_floating(function, "query", query)
    key = as_floating(function, "key", key)
    value = None if value is None else as_floating(function, "value", value)
    bias = None if bias is None else as_floating(function, "bias", bias)
    _check_arrays(function, query, key, value)
    batch, (length_q, num_heads, head_dim), length_k = (
        query.shape[:-3],
        query.shape[-3:],
        key.shape[-3],
    )
    weights_shape = (*batch, num_heads, length_q, length_k)
    if mask is not None:
        if not hasattr(mask, "dtype"):
            raise TypeError(
                f"{function}: mask must be a boolean array, got {type(mask).__name__}. "
                f"Wrap it: jnp.asarray(mask)."
            )
        if mask.dtype != jnp.bool_:
            raise TypeError(
                f"{function}: mask must be boolean, True = attend, got {mask.dtype}. Write "
                f"mask.astype(bool) for 0/1, or pass an additive mask as bias."
            )
        mask = jnp.asarray(mask)
    if scale is not None and jnp.ndim(scale) != 0:
        raise ValueError(
            f"{function}: scale must be one number, got shape {list(jnp.shape(scale))}. "
            f"Multiply the query instead: query * scale."
        )
    if not isinstance(normalizer, Softmax):
        raise TypeError(
            f"{function}: normalizer must be a Softmax, got {type(normalizer).__name__}."
        )
    if normalizer.sink is not None and jnp.shape(normalizer.sink) not in ((), (1,), (num_heads,)):
        raise ValueError(
            f"{function}: the sink must be one number or [N] = [{num_heads}], "
            f"got {list(jnp.shape(normalizer.sink))}."
        )
    head_ids = jnp.arange(num_heads) if head_ids is None else jnp.asarray(head_ids)
    if head_ids.shape != (num_heads,):
        raise ValueError(
            f"{function}: head_ids must be [N] = [{num_heads}], got {list(head_ids.shape)}."
        )
    _check_dropout(function, dropout, batch)
    return Request(
        query=query,
        key=key,
        value=value,
        bias=_check_broadcast(function, "bias", bias, weights_shape),
        mask=_check_broadcast(function, "mask", mask, weights_shape),
        scale=head_dim**-0.5 if scale is None else scale,
        is_causal=is_causal,
        query_seq_lengths=_check_lengths(function, "query_seq_lengths", query_seq_lengths, batch),
        key_value_seq_lengths=_check_lengths(
            function, "key_value_seq_lengths", key_value_seq_lengths, batch
        ),
        window=_check_window(function, local_window_size),
        normalizer=normalizer,
        dropout=dropout,
        head_ids=head_ids,
        precision=precision,
    )


def _check_arrays(function: str, query: jax.Array, key: jax.Array, value: jax.Array | None) -> None:
    arrays = {"query": query, "key": key} | ({} if value is None else {"value": value})
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    if query.ndim < 3 or any(array.ndim != query.ndim for array in arrays.values()):
        raise ValueError(
            f"{function}: query must be [*B, T, N, D], key and value [*B, S, K, D], of one rank, "
            f"got {shapes}. Add a head axis to a single head: query[..., None, :]."
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
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{function}: {name} must be integers, got {lengths.dtype}.")
    if not batch and lengths.shape == (1,):  # what jax.nn takes without a batch
        lengths = lengths.reshape(())
    if lengths.shape != batch:
        raise ValueError(
            f"{function}: {name} must be [*B] = {list(batch)}, got {list(lengths.shape)}."
        )
    return lengths.astype(jnp.int32)


def _check_window(function: str, window: int | Window | None) -> Window | None:
    if window is None:
        return None
    sides = tuple(window) if isinstance(window, tuple | list) else (window, window)
    for side in sides:
        if side is not None and not jnp.issubdtype(jnp.result_type(side), jnp.integer):
            raise TypeError(f"{function}: local_window_size must be whole numbers, got {window}.")
    known = (side for side in sides if side is not None and not isinstance(side, jax.core.Tracer))
    if len(sides) != 2 or any(jnp.ndim(side) != 0 or side < 0 for side in known):
        raise ValueError(
            f"{function}: local_window_size must be (left, right) or one number for both, "
            f"in tokens, at least 0, got {window}."
        )
    if all(side is None for side in sides):
        return None
    left, right = (side if side is None else jnp.asarray(side, jnp.int32) for side in sides)
    return left, right


def _check_dropout(function: str, dropout: Dropout | None, batch: tuple[int, ...]) -> None:
    if dropout is None:
        return
    if not isinstance(dropout, Dropout):
        raise TypeError(
            f"{function}: dropout must be a Dropout(rate, key), got {type(dropout).__name__}."
        )
    if not hasattr(dropout.key, "dtype") or not (
        (jnp.issubdtype(dropout.key.dtype, jax.dtypes.prng_key) and dropout.key.ndim == 0)
        or (dropout.key.dtype == jnp.uint32 and dropout.key.ndim == 1)
    ):
        raise TypeError(
            f"{function}: dropout.key must be one JAX key, got "
            f"{getattr(dropout.key, 'shape', dropout.key)}. Write jax.random.key(seed)."
        )
    if not isinstance(dropout.rate, jax.core.Tracer) and not 0 <= dropout.rate < 1:
        raise ValueError(f"{function}: the dropout rate must lie in [0, 1), got {dropout.rate}.")
    count = math.prod(batch)
    if dropout.batch_ids is not None and dropout.batch_ids.shape != (count,):
        raise ValueError(
            f"{function}: dropout.batch_ids must be one number for each batch element, "
            f"[{count}], got {list(dropout.batch_ids.shape)}."
        )
