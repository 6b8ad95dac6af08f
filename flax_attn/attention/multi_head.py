"""Multi-head attention."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flax_attn._checks import as_floating, check_maps
from flax_attn.attention._cache_checks import check_batch, check_cache, check_rotary
from flax_attn.attention._core.finite import finite, not_finite
from flax_attn.attention.dot_product import dot_product_attention
from flax_attn.coords import Coords

Map = Callable[[Array], Array]
Rotation = Callable[[Array, Array], Array]
"""A function of queries or keys `[*B, T, N, D]` and positions, such as `positions.Rotary(D)`."""


KeyValue = tuple[Array, Array]
"""Keys `[*B, S, K, D]` and values `[*B, S, K, Dv]`."""


@runtime_checkable
class KeyValueCache(Protocol):
    """What attention needs of a cache; see `flax_attn.caches`."""

    def next_coords(self, length: int, coords: Coords | None = None) -> Coords:
        """The coordinates of the next tokens `[*B, T]`."""

    def attend(
        self, query: Array, key: Array, value: Array, coords: Coords | None = None, **options: Any
    ) -> tuple[Array, Any]:
        """Append tokens, and attend from them to all that the cache holds."""


def multi_head_attention(
    inputs_q: Float[Array, "*B T Mq"],
    inputs_kv: Float[Array, "*B S Mk"],
    query: Map,
    key: Map | None,
    value: Map | None,
    out: Map,
    *,
    inputs_v: Float[Array, "*B S Mv"] | None = None,
    query_norm: Map | None = None,
    key_norm: Map | None = None,
    rotary: Rotation | None = None,
    input_positions: Int[Array, "..."] | None = None,
    gate: Map | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    query_coords: Coords | None = None,
    key_coords: Coords | None = None,
    cache: KeyValueCache | None = None,
    key_value: KeyValue | None = None,
    return_key_value: bool = False,
    attention: Callable[..., Array] = dot_product_attention,
    **options: Any,
) -> Float[Array, "*B T M"] | Any:
    """Multi-head attention: project the inputs, attend in each head, project the output.

    MHA(X, Y) = out(σ(gate(X)) ∘ Attention(rotary(query(X)), rotary(key(Y)), value(Y)))

    Self-attention is X = Y. Each projection is a map: a bound matrix, a Linen or NNX layer, or any
    other callable. Rotary positions and the gate are optional.

    Args:
      inputs_q: Inputs of the queries `[*B, T, Mq]`.
      inputs_kv: Inputs of the keys and values `[*B, S, Mk]`.
      query: Map from `[*B, T, Mq]` to `[*B, T, N, D]`.
      key: Map from `[*B, S, Mk]` to `[*B, S, K, D]`.
      value: Map from `[*B, S, Mk]` to `[*B, S, K, Dv]`.
      out: Map from `[*B, T, N, Dv]` to `[*B, T, M]`.
      inputs_v: Inputs of the values `[*B, S, Mv]`; default `inputs_kv`.
      query_norm: Map applied to the projected queries `[*B, T, N, D]`.
      key_norm: Map applied to the projected keys `[*B, S, K, D]`.
      rotary: Function of queries or keys and their positions, applied after the norms, such as
        `positions.Rotary(head_dim)`. It reads the positions of the coordinates.
      input_positions: Positions for `rotary` in place of those, `[*B, T]` or `[*B, T, A]` for
        several axes. For self-attention.
      gate: Map from `[*B, T, Mq]` to `[*B, T, N, Dv]`, or `[*B, T, N, 1]` for one gate per head.
        The sigmoid of its output multiplies the output of attention.
      num_heads: N, for projections without a head axis: `query` then returns `[*B, T, N · D]`, and
        `out` takes `[*B, T, N · Dv]`. Features n · D ... (n + 1) · D − 1 belong to head n.
      num_kv_heads: K, for such projections; default N.
      query_coords: Coordinates of the tokens of `inputs_q`.
      key_coords: Coordinates of those of `inputs_kv`.
      cache: A cache of `flax_attn.caches`, for self-attention. The tokens are appended to it, and
        attend to all that it holds. Coordinates are those of the new tokens.
      key_value: Keys `[*B, S, K, D]` and values `[*B, S, K, Dv]` to attend to, such as those of
        another layer. They are taken as they are: `inputs_kv`, `key`, `value` and `key_norm` are
        not read, and `key` and `value` may be None.
      return_key_value: If True, also returns the keys, after norm and rotation, and the values.
      attention: Attention on heads, called as `attention(q, k, v, **options)`.
      **options: Passed on to `attention`: `mask`, `bias`, `is_causal`, `dropout`, ...

    Returns:
      The output `[*B, T, M]`; with a cache also the new cache; with `return_key_value` also the
      pair of keys and values of these inputs. Several results are a tuple in this order.

    Raises:
      ValueError: If an input, or the result of a projection, has the wrong shape; if arguments
        exclude each other; if tokens do not fit into the cache.
      TypeError: If an input is not floating point, `cache` is no cache, `key_value` is no pair, or
        `attention` does not know an option.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import maps, multi_head_attention
      >>> split = maps.dense(jax.random.normal(jax.random.key(0), (32, 4, 8)))
      >>> join = maps.dense(jax.random.normal(jax.random.key(1), (4, 8, 32)), axes=2)
      >>> x = jnp.ones((2, 10, 32))
      >>> multi_head_attention(x, x, split, split, split, join, is_causal=True).shape
      (2, 10, 32)

    References:
      Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, section 3.2.2;
      Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", ICML 2023,
      arXiv:2302.05442 (normalised queries and keys); Su et al., "RoFormer: Enhanced Transformer
      with Rotary Position Embedding", 2021, arXiv:2104.09864; Qiu et al., "Gated Attention for
      Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free", NeurIPS 2025,
      arXiv:2505.06708 (the gate).
    """
    function = "multi_head_attention"
    check_maps(function, query=query, key=key, value=value, out=out)
    check_maps(function, query_norm=query_norm, key_norm=key_norm, rotary=rotary, gate=gate)
    check_maps(function, attention=attention)
    inputs_q = as_floating(function, "inputs_q", inputs_q)
    if num_heads is not None and num_heads < 1:
        raise ValueError(f"{function}: num_heads must be at least 1, got {num_heads}.")
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_kv_heads is not None and num_kv_heads < 1:
        raise ValueError(f"{function}: num_kv_heads must be at least 1, got {num_kv_heads}.")
    q = _project(function, "query", query, inputs_q, num_heads)
    q = q if query_norm is None else query_norm(q)
    coords = query_coords
    if cache is not None:
        check_cache(function, cache, key_coords=key_coords, key_value=key_value)
        coords = cache.next_coords(q.shape[-3], query_coords)
        check_batch(function, "inputs_q", inputs_q, coords)
        check_rotary(function, rotary)
    q = _rotated(function, rotary, input_positions, q, coords)
    if key_value is None:
        inputs_v = as_floating(function, "inputs_v", inputs_kv if inputs_v is None else inputs_v)
        inputs_kv = as_floating(function, "inputs_kv", inputs_kv)
        if key is None or value is None:
            raise ValueError(f"{function}: key and value must be maps without key_value, got None.")
        k = _project(function, "key", key, inputs_kv, num_kv_heads)
        v = _project(function, "value", value, inputs_v, num_kv_heads)
        k = k if key_norm is None else key_norm(k)
        if (cache is not None or input_positions is not None) and q.shape[-3] != k.shape[-3]:
            raise ValueError(
                f"{function}: cache and input_positions are for self-attention, where queries and "
                f"keys are the same tokens, got T = {q.shape[-3]} and S = {k.shape[-3]}."
            )
        k = _rotated(function, rotary, input_positions, k, key_coords if cache is None else coords)
    else:
        k, v = _check_key_value(function, key_value)
    if cache is not None:
        heads, cache = cache.attend(q, k, v, query_coords, attention=attention, **options)
    else:
        located = {"query_coords": query_coords, "key_coords": key_coords}
        options |= {name: coords for name, coords in located.items() if coords is not None}
        heads = attention(q, k, v, **options)
    if isinstance(heads, tuple):
        raise TypeError(
            f"{function}: attention must return one array, got {len(heads)}. "
            f"Leave out return_residual."
        )
    if gate is not None:
        gates = _project(function, "gate", gate, inputs_q, num_heads)
        heads = heads * jax.nn.sigmoid(gates).astype(heads.dtype)
    if num_heads is not None:
        heads = heads.reshape(*heads.shape[:-2], heads.shape[-2] * heads.shape[-1])
    results: list[Any] = [out(heads)]
    if cache is not None:
        results.append(cache)
    if return_key_value:
        results.append((k, v))
    return tuple(results) if len(results) > 1 else results[0]


def _check_key_value(function: str, key_value: Any) -> KeyValue:
    """The keys and values that were given; raise unless they are a pair."""
    if not isinstance(key_value, tuple | list) or len(key_value) != 2:
        kind = type(key_value).__name__
        raise TypeError(
            f"{function}: key_value must be a pair of keys [*B, S, K, D] and values "
            f"[*B, S, K, Dv], got {kind}. For those of a cache: (cache.keys, cache.values)."
        )
    key, value = (as_floating(function, "key_value", x) for x in key_value)
    return key, value


def _rotated(
    function: str,
    rotary: Rotation | None,
    input_positions: jax.Array | None,
    heads: jax.Array,
    coords: Coords | None,
) -> jax.Array:
    """Queries or keys, rotated by their positions."""
    if rotary is None:
        if input_positions is not None:
            raise ValueError(
                f"{function}: input_positions are for rotary, which was not given. Give rotary, or "
                f"query_coords=Coords(positions) for the mask."
            )
        return heads
    if input_positions is not None:
        return rotary(heads, input_positions)
    return rotary(heads, jnp.arange(heads.shape[-3]) if coords is None else coords.positions)


def _project(
    function: str, name: str, projection: Map, inputs: jax.Array, num_heads: int | None
) -> jax.Array:
    # A token that is not finite stays so after the projection. It must not enter the gradient of
    # the projection's weights: where a mask hides the token, that gradient would be NaN · 0.
    projected = projection(finite(inputs))
    if num_heads is not None:
        if projected.shape[:-1] != inputs.shape[:-1] or projected.shape[-1] % num_heads:
            raise ValueError(
                f"{function}: with {num_heads} heads, {name} must return {list(inputs.shape[:-1])} "
                f"+ [a multiple of {num_heads}], got {list(projected.shape)}."
            )
        head_dim = projected.shape[-1] // num_heads
        projected = projected.reshape(*projected.shape[:-1], num_heads, head_dim)
    elif projected.ndim != inputs.ndim + 1 or projected.shape[:-2] != inputs.shape[:-1]:
        raise ValueError(
            f"{function}: {name} must return {list(inputs.shape[:-1])} + [heads, head size], got "
            f"{list(projected.shape)}. Give num_heads to split a last axis of heads · head size."
        )
    return jnp.where(not_finite(inputs)[..., None, None], jnp.nan, projected)
