"""Multi-head attention as an NNX module."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PrecisionLike, PromoteDtypeFn

from flax_attn._checks import as_integer, check_features, output_features
from flax_attn._modules import (
    MASK_BY_NAME,
    MODULE,
    adapted,
    attention_options,
    check_decoding,
    check_dropout_rate,
    check_key_value,
    check_norm,
    check_parts,
    flax_cache,
    head_sizes,
    joined_mask,
    joined_score_mod,
    make_dropout,
    resolve_inputs,
    summed_over,
    with_sink,
    with_weights,
)
from flax_attn.attention import Dropout, dot_product_attention, multi_head_attention
from flax_attn.attention._core.placement import Placement
from flax_attn.attention._core.selection import Choice
from flax_attn.caches import Cache
from flax_attn.coords import Coords
from flax_attn.masks import Mask, Plan
from flax_attn.nnx._module import Module
from flax_attn.normalizers import Normalizer
from flax_attn.positions import Rotary
from flax_attn.scores import ScoreMod

_LayerNorm = functools.partial(nnx.LayerNorm, use_bias=False)
_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class MultiHeadAttention(Module):
    """Multi-head attention, `flax_attn.multi_head_attention`.

    Takes the constructor of `flax.nnx.MultiHeadAttention` and has its parameters (`query`, `key`,
    `value`, `out`, and with `normalize_qk` `query_ln`, `key_ln`), so that weights move both ways.
    The widths of queries, keys, values, heads and output need not be equal. Of Flax's own tests of
    both its modules all pass but six, which want Flax's class names, its deprecation warnings and
    error texts, complex inputs, or weights in bfloat16 (here they are float32).

    Arguments of Flax's class that are not described here have its meaning.

    Args:
      num_kv_heads: K, the number of key and value heads; N by default.
      in_value_features: Width of the values' input; `in_kv_features` by default.
      head_dim: D, if not `qkv_features // num_heads`.
      value_head_dim: Dv; D by default.
      precision: Precision of all dot products.
      deterministic: If True, dropout is disabled. It must be given with a positive rate; `eval()`
        and `train()` set it.
      attention_fn: Attention on heads, called with `query, key, value` and those keywords of
        `flax_attn.dot_product_attention` that are set.
      decode: If True, each call appends its tokens to the cache that `init_cache` made, and they
        attend to all tokens so far and to none after them. Flax takes one token at a time; here any
        number is taken. Tokens that do not fit raise an error, or under `jit` give NaN. For caches
        of other kinds, for batches of different lengths and for speed, use `cache=` at the call.
      normalize_qk: Normalise queries and keys: True or "layer" by LayerNorm without bias, as Flax
        does, "rms" by RMSNorm.
      qkv_dot_general: Dot product of the query, key and value projections.
      out_dot_general: Dot product of the output projection.
      qkv_dot_general_cls: Makes `qkv_dot_general`.
      out_dot_general_cls: Makes `out_dot_general`.
      scale: Factor of the dot products; 1/√D by default.
      rotary: Rotary positions of queries and keys, applied after `normalize_qk`.
      mask: A mask for every call. A mask at the call hides more.
      score_mod: A score modifier for every call. One at the call follows it.
      normalizer: From scores to weights.
      sink: If True, each head has a learned sink `sink` `[N]`: `Softmax(sink)`.
      sink_init: Initializer of the sinks, `zeros_init()` by default.
      output_gate: If True, σ(gate(inputs_q)) multiplies the output of each head, feature by
        feature. Its projection is `gate`.
      shares_key_value: If True, there are no projections of keys and values: they are those of
        another layer, passed as `key_value`.
      implementation: As in `flax_attn.dot_product_attention`.
      placement: As in `flax_attn.dot_product_attention`.
      axis_name: Mesh axis over which the heads are split, inside `shard_map` or `pmap`: `num_heads`
        and `num_kv_heads` then count the heads of one device, and the outputs are summed over the
        axis.
      batch_axis_name: Mesh axis over which the batch is split, inside `shard_map` or `pmap`.
        Dropout then drops the same weights as on one device.

    Example:
      >>> nnx.MultiHeadAttention(4, 32, rngs=rngs)(jnp.ones((2, 10, 32)), is_causal=True).shape
      (2, 10, 32)
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        in_value_features: int | None = None,
        head_dim: int | None = None,
        value_head_dim: int | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        broadcast_dropout: bool = True,
        dropout_rate: float = 0.0,
        deterministic: bool | None = None,
        precision: PrecisionLike = None,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        out_kernel_init: Initializer | None = None,
        bias_init: Initializer = nnx.initializers.zeros_init(),
        out_bias_init: Initializer | None = None,
        use_bias: bool = True,
        attention_fn: Callable[..., jax.Array] = dot_product_attention,
        decode: bool | None = None,
        normalize_qk: bool | Literal["layer", "rms"] = False,
        qkv_promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        out_promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        ln_promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        qkv_dot_general: Callable[..., jax.Array] | None = None,
        out_dot_general: Callable[..., jax.Array] | None = None,
        qkv_dot_general_cls: Any = None,
        out_dot_general_cls: Any = None,
        scale: float | None = None,
        rotary: Rotary | None = None,
        mask: Mask | None = None,
        score_mod: ScoreMod | None = None,
        normalizer: Normalizer | None = None,
        sink: bool = False,
        sink_init: Initializer = nnx.initializers.zeros_init(),
        output_gate: bool = False,
        shares_key_value: bool = False,
        implementation: Choice = None,
        placement: Placement | None = None,
        axis_name: str | None = None,
        batch_axis_name: str | None = None,
        rngs: nnx.Rngs,
        keep_rngs: bool = True,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        out_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        out_bias_metadata: Mapping[str, Any] = _NO_METADATA,
        query_ln_scale_metadata: Mapping[str, Any] = _NO_METADATA,
        key_ln_scale_metadata: Mapping[str, Any] = _NO_METADATA,
    ):
        check_dropout_rate(dropout_rate)
        check_norm(normalize_qk)
        check_parts(mask, normalizer, sink)
        layers = self._layers_for(
            in_features,
            rngs,
            use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
        )
        sizes = head_sizes(
            in_features, num_heads, num_kv_heads, qkv_features, head_dim, value_head_dim, axis_name
        )
        in_kv_features = in_features if in_kv_features is None else in_kv_features
        in_value_features = in_kv_features if in_value_features is None else in_value_features
        project = functools.partial(
            layers.general,
            precision=precision,
            promote_dtype=qkv_promote_dtype,
            dot_general=qkv_dot_general,
            dot_general_cls=qkv_dot_general_cls,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.query = project(in_features, (num_heads, sizes.head_dim))
        self.key = self.value = nnx.data(None)
        if not shares_key_value:
            self.key = project(in_kv_features, (sizes.num_kv_heads, sizes.head_dim))
            self.value = project(in_value_features, (sizes.num_kv_heads, sizes.value_head_dim))
        norm = functools.partial(
            nnx.RMSNorm if normalize_qk == "rms" else _LayerNorm,
            sizes.head_dim,
            dtype=dtype,
            param_dtype=param_dtype,
            promote_dtype=ln_promote_dtype,
            rngs=rngs,
        )
        self.query_ln = self.key_ln = nnx.data(None)
        if normalize_qk:
            self.query_ln = norm(scale_metadata=query_ln_scale_metadata)
        if normalize_qk and not shares_key_value:
            self.key_ln = norm(scale_metadata=key_ln_scale_metadata)
        self.out = layers.general(
            (num_heads, sizes.value_head_dim),
            output_features(MODULE, in_features, out_features),
            axis=(-2, -1),
            precision=precision,
            kernel_init=out_kernel_init or kernel_init,
            bias_init=out_bias_init or bias_init,
            promote_dtype=out_promote_dtype,
            dot_general=summed_over(
                axis_name, out_dot_general_cls() if out_dot_general_cls else out_dot_general
            ),
            kernel_metadata=out_kernel_metadata or kernel_metadata,
            bias_metadata=out_bias_metadata or bias_metadata,
        )
        self.gate = nnx.data(None)
        if output_gate:
            self.gate = project(in_features, (num_heads, sizes.value_head_dim))
        self.sink = nnx.data(layers.param(sink_init, num_heads) if sink else None)
        self.rngs = rngs.dropout.fork() if keep_rngs and dropout_rate > 0 else None
        self.num_heads = num_heads
        self.qkv_features = num_heads * sizes.head_dim
        self.out_features = self.out.out_features[0]
        self.num_kv_heads = sizes.num_kv_heads
        self.in_kv_features = in_kv_features
        self.in_value_features = in_value_features
        self.head_dim = sizes.head_dim
        self.value_head_dim = sizes.value_head_dim
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.decode = decode
        self.normalize_qk = normalize_qk
        self.qkv_promote_dtype = qkv_promote_dtype
        self.out_promote_dtype = out_promote_dtype
        self.ln_promote_dtype = ln_promote_dtype
        self.qkv_dot_general = qkv_dot_general
        self.out_dot_general = out_dot_general
        self.qkv_dot_general_cls = qkv_dot_general_cls
        self.out_dot_general_cls = out_dot_general_cls
        self.broadcast_dropout = broadcast_dropout
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.precision = precision
        self.attention_fn = attention_fn
        self.scale = scale
        self.rotary = rotary
        self.mask = nnx.data(mask)
        self.score_mod = nnx.data(score_mod)
        self.normalizer = nnx.data(normalizer)
        self.implementation, self.placement = implementation, placement
        self.axis_name = axis_name
        self.batch_axis_name = batch_axis_name
        self.cached_key: nnx.Cache[jax.Array] | None = nnx.data(None)
        self.cached_value: nnx.Cache[jax.Array] | None = nnx.data(None)
        self.cache_index: nnx.Cache[jax.Array] | None = nnx.data(None)

    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_k: jax.Array | None = None,
        inputs_v: jax.Array | None = None,
        *,
        mask: Mask | jax.Array | None = None,
        bias: jax.Array | None = None,
        is_causal: bool = False,
        score_mod: ScoreMod | None = None,
        query_coords: Coords | None = None,
        key_coords: Coords | None = None,
        plan: Plan | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        out_sharding: Any = None,
        qkv_sharding: Any = None,
        input_positions: jax.Array | None = None,
        inputs_kv: jax.Array | None = None,
        cache: Cache | None = None,
        key_value: tuple[jax.Array, jax.Array] | None = None,
        return_key_value: bool = False,
    ) -> Any:
        """Attend from `inputs_q` to `inputs_k`, reading `inputs_v`.

        Args:
          inputs_q: Input of the queries `[*B, T, Mq]`.
          inputs_k: Input of the keys `[*B, S, Mk]`; `inputs_q` by default: self-attention.
          inputs_v: Input of the values `[*B, S, Mv]`; `inputs_k` by default.
          mask: A `flax_attn.masks.Mask`; or an array that broadcasts to `[*B, N, T, S]`, True or 1
            where a query attends and False or 0 elsewhere. Other numbers are refused, but under
            `jit` they are unknown and count as True. Pass a mask of 0 and −1e9 as `bias`.
          bias: Added to the scaled scores; broadcasts to `[*B, N, T, S]`.
          is_causal: If True, query t attends to the keys s ≤ t only.
          score_mod: Changes the scores: a `flax_attn.scores.ScoreMod`.
          query_coords: Coordinates of the tokens of `inputs_q`.
          key_coords: Coordinates of those of `inputs_k`; `query_coords` by default in
            self-attention.
          plan: The block map of `mask`, made once for many layers by `flax_attn.make_plan`.
          deterministic: If True, dropout is disabled; overrides the attribute.
          rngs: Keys of dropout; override those that were kept.
          sow_weights: If True, sows `attention_weights` `[*B, N, T, S]`, before dropout.
          decode: Overrides the attribute.
          out_sharding: Sharding of the output, as in `flax.nnx.LinearGeneral`.
          qkv_sharding: Sharding of the projected queries, keys and values.
          input_positions: Positions for `rotary` in place of those of the coordinates, `[*B, T]` or
            `[*B, T, A]` for several axes. Without `rotary` they are passed to an `attention_fn`
            that takes them, such as Flax's with rotary embeddings.
          inputs_kv: Another name of `inputs_k`.
          cache: A cache of `flax_attn.caches`. The tokens of `inputs_q` are appended to it and
            attend to all that it holds; pass `is_causal=True`, or a mask, to hide later tokens.
          key_value: Keys `[*B, S, K, D]` and values `[*B, S, K, Dv]` to attend to, with their
            `key_coords`: those of another layer, or of its cache.
          return_key_value: If True, also returns the keys and values of these inputs.

        Returns:
          The output `[*B, T, out_features]`; with a cache also the new cache; with
          `return_key_value` also the pair of keys and values.

        Raises:
          ValueError: If shapes, dtypes or options do not fit, or tokens do not fit into the cache.
          TypeError: If an argument is of the wrong kind.
        """
        decode = bool(self.decode if decode is None else decode)
        given = inputs_k, inputs_v, inputs_kv, key_coords, key_value, cache
        if all(x is None for x in given) and not decode:
            key_coords = query_coords
        check_key_value(
            key_value,
            self.key is None and not decode,
            inputs_k=inputs_k,
            inputs_v=inputs_v,
            inputs_kv=inputs_kv,
        )
        if decode:
            check_decoding(
                query_coords=query_coords,
                key_coords=key_coords,
                cache=cache,
                key_value=key_value,
                return_key_value=return_key_value,
                shares_key_value=self.key is None,
            )
        inputs_k, inputs_v = resolve_inputs(inputs_q, inputs_k, inputs_v, inputs_kv)
        for name, inputs, projection in (
            ("inputs_q", inputs_q, self.query),
            ("inputs_k", inputs_k, self.key),
            ("inputs_v", inputs_v, self.value),
        ):
            fix = "" if name == "inputs_q" else MASK_BY_NAME
            if projection is not None:
                check_features(MODULE, inputs, projection.in_features[0], name, fix)
        attention = self.attention_fn
        if sow_weights:
            attention = with_weights(attention, self._sow_on_request)
        sharded = functools.partial(_sharded, qkv_sharding)
        attend = functools.partial(
            multi_head_attention,
            inputs_q,
            inputs_k,
            sharded(self.query),
            sharded(self.key),
            sharded(self.value),
            functools.partial(self.out, out_sharding=out_sharding),
            inputs_v=inputs_v,
            query_norm=self.query_ln,
            key_norm=self.key_ln,
            rotary=self.rotary,
            input_positions=None if self.rotary is None else input_positions,
            gate=sharded(self.gate),
            attention=adapted(
                attention,
                self.axis_name,
                self.batch_axis_name,
                input_positions=input_positions if self.rotary is None else None,
            ),
            **attention_options(
                joined_mask(self.mask, mask),
                self.num_heads,
                self.axis_name,
                bias=bias,
                is_causal=is_causal or decode,
                score_mod=joined_score_mod(self.score_mod, score_mod),
                query_coords=query_coords,
                key_coords=key_coords,
                plan=plan,
                scale=self.scale,
                normalizer=with_sink(
                    self.normalizer, None if self.sink is None else self.sink[...]
                ),
                dropout=self._dropout(inputs_q, deterministic, rngs),
                precision=self.precision,
                implementation=self.implementation,
                placement=self.placement,
                key_value=key_value,
            ),
        )
        if decode:
            return self._decode(attend, inputs_q.shape[-2])
        return attend(cache=cache, return_key_value=return_key_value)

    def _decode(self, attend: Callable[..., Any], length: int) -> jax.Array:
        """Attend with the keys and values in Flax's cache variables, and store the new ones."""
        if self.cached_key is None or self.cached_value is None or self.cache_index is None:
            raise ValueError(
                f"{MODULE}: decode=True needs a cache, and there is none. Call "
                f"init_cache((*batch, max_length, in_features)) first, or nnx.view(module, "
                f"decode=True, batch_size=..., max_length=...)."
            )
        cache = flax_cache(self.cached_key[...], self.cached_value[...], self.cache_index[...])
        output, cache = attend(cache=cache)
        self.cached_key[...], self.cached_value[...] = cache.keys, cache.values
        self.cache_index[...] += length
        return output

    def _dropout(
        self, inputs: jax.Array, deterministic: bool | None, rngs: nnx.Rngs | nnx.RngStream | None
    ) -> Dropout | None:
        if self.dropout_rate == 0:
            return None
        deterministic = self.deterministic if deterministic is None else deterministic
        if deterministic is None:
            raise ValueError(
                f"MultiHeadAttention: deterministic must be given for dropout_rate = "
                f"{self.dropout_rate}: at the call, to the constructor, or by train() and eval()."
            )
        if deterministic:
            return None
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError(
                f"MultiHeadAttention: rngs must be passed for dropout_rate = {self.dropout_rate}, "
                f"as the module was made with keep_rngs=False."
            )
        if not isinstance(rngs, nnx.Rngs | nnx.RngStream):
            raise TypeError(
                f"MultiHeadAttention: rngs must be an nnx.Rngs or one of its streams, got "
                f"{type(rngs).__name__}. Wrap a key: rngs=nnx.Rngs(dropout=key)."
            )
        stream = rngs.dropout if isinstance(rngs, nnx.Rngs) else rngs
        return make_dropout(
            self.dropout_rate, stream(), self.broadcast_dropout, inputs, self.batch_axis_name
        )

    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | Sequence[int] | None = None,
        max_length: int | None = None,
    ) -> None:
        """Class method used by `nnx.view`.

        Args:
          deterministic: If True, dropout is disabled.
          decode: If True, calls append to the cache.
          batch_size: Batch axes of a new cache `*B`; with `max_length`.
          max_length: How many tokens a new cache holds.
        """
        if decode is not None:
            self.decode = decode
        if deterministic is not None:
            self.deterministic = deterministic
        if (batch_size is None) != (max_length is None):
            raise ValueError(
                f"{MODULE}: batch_size and max_length make a cache together, got "
                f"{batch_size} and {max_length}."
            )
        if batch_size is not None and max_length is not None:
            batch = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
            dtype = self.param_dtype if self.dtype is None else self.dtype
            self.init_cache((*batch, max_length, self.query.in_features[0]), dtype)

    def init_cache(self, input_shape: Sequence[int], dtype: Dtype = jnp.float32) -> None:
        """Make an empty cache for `decode=True`: variables of the type `nnx.Cache`.

        Args:
          input_shape: Shape of the input of a whole sequence `[*B, S, M]`: S tokens can be stored.
          dtype: dtype of keys and values; it must be that of the projections.

        Raises:
          ValueError: If the shape has fewer than two axes, or a size is below 1.
          TypeError: If a size is no whole number.
        """
        sizes = [as_integer(f"{MODULE}.init_cache", "input_shape", size) for size in input_shape]
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                f"{MODULE}.init_cache: input_shape must be [*B, S, M] with sizes of at least 1, "
                f"got {sizes}. S is how many tokens the cache can hold."
            )
        shape = (*input_shape[:-1], self.num_kv_heads)
        self.cached_key = nnx.Cache(jnp.zeros((*shape, self.head_dim), dtype))
        self.cached_value = nnx.Cache(jnp.zeros((*shape, self.value_head_dim), dtype))
        self.cache_index = nnx.Cache(jnp.array(0, jnp.int32))


def _sharded(sharding: Any, projection: Any) -> Any:
    """A projection whose output has this sharding; None stays None."""
    return None if projection is None else functools.partial(projection, out_sharding=sharding)
