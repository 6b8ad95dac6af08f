"""Multi-head attention as an NNX module."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PrecisionLike, PromoteDtypeFn

from flax_attn._checks import check_features, output_features
from flax_attn._modules import (
    MASK_BY_NAME,
    MODULE,
    adapted,
    attention_options,
    check_dropout_rate,
    head_sizes,
    make_dropout,
    refuse_decode,
    resolve_inputs,
    summed_over,
    with_weights,
)
from flax_attn.attention import Dropout, dot_product_attention, multi_head_attention
from flax_attn.coords import Coords
from flax_attn.masks import Mask, Plan
from flax_attn.nnx._module import Module
from flax_attn.normalizers import Normalizer
from flax_attn.scores import ScoreMod

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class MultiHeadAttention(Module):
    """Multi-head attention, `flax_attn.multi_head_attention`.

    Takes the constructor of `flax.nnx.MultiHeadAttention` and has its parameters (`query`, `key`,
    `value`, `out`, and with `normalize_qk` `query_ln`, `key_ln`), so that weights move both ways.
    The widths of queries, keys, values, heads and output need not be equal.

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
      decode: Not in this version: only None or False.
      qkv_dot_general: Dot product of the query, key and value projections.
      out_dot_general: Dot product of the output projection.
      qkv_dot_general_cls: Makes `qkv_dot_general`.
      out_dot_general_cls: Makes `out_dot_general`.
      scale: Factor of the dot products; 1/√D by default.
      normalizer: From scores to weights.
      implementation: As in `flax_attn.dot_product_attention`.
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
        normalize_qk: bool = False,
        qkv_promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        out_promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        ln_promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        qkv_dot_general: Callable[..., jax.Array] | None = None,
        out_dot_general: Callable[..., jax.Array] | None = None,
        qkv_dot_general_cls: Any = None,
        out_dot_general_cls: Any = None,
        scale: float | None = None,
        normalizer: Normalizer | None = None,
        implementation: str | Sequence[str] | None = None,
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
        refuse_decode(decode)
        check_dropout_rate(dropout_rate)
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
        self.key = project(in_kv_features, (sizes.num_kv_heads, sizes.head_dim))
        self.value = project(in_value_features, (sizes.num_kv_heads, sizes.value_head_dim))
        norm = functools.partial(
            nnx.LayerNorm,
            sizes.head_dim,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            promote_dtype=ln_promote_dtype,
            rngs=rngs,
        )
        self.query_ln = nnx.data(
            norm(scale_metadata=query_ln_scale_metadata) if normalize_qk else None
        )
        self.key_ln = nnx.data(norm(scale_metadata=key_ln_scale_metadata) if normalize_qk else None)
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
        self.normalizer = nnx.data(normalizer)
        self.implementation = implementation
        self.axis_name = axis_name
        self.batch_axis_name = batch_axis_name

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
    ) -> jax.Array:
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
          decode: Not in this version: only None or False.
          out_sharding: Sharding of the output, as in `flax.nnx.LinearGeneral`.
          qkv_sharding: Sharding of the projected queries, keys and values.
          input_positions: Passed to an `attention_fn` that takes it, such as Flax's with rotary
            embeddings.
          inputs_kv: Another name of `inputs_k`.

        Returns:
          The output `[*B, T, out_features]`.
        """
        refuse_decode(self.decode if decode is None else decode)
        given = inputs_k, inputs_v, inputs_kv, key_coords
        if all(x is None for x in given):
            key_coords = query_coords
        inputs_k, inputs_v = resolve_inputs(inputs_q, inputs_k, inputs_v, inputs_kv)
        for name, inputs, projection in (
            ("inputs_q", inputs_q, self.query),
            ("inputs_k", inputs_k, self.key),
            ("inputs_v", inputs_v, self.value),
        ):
            fix = "" if name == "inputs_q" else MASK_BY_NAME
            check_features(MODULE, inputs, projection.in_features[0], name, fix)
        attention = self.attention_fn
        if sow_weights:
            attention = with_weights(attention, self._sow_on_request)
        return multi_head_attention(
            inputs_q,
            inputs_k,
            functools.partial(self.query, out_sharding=qkv_sharding),
            functools.partial(self.key, out_sharding=qkv_sharding),
            functools.partial(self.value, out_sharding=qkv_sharding),
            functools.partial(self.out, out_sharding=out_sharding),
            inputs_v=inputs_v,
            query_norm=self.query_ln,
            key_norm=self.key_ln,
            attention=adapted(attention, self.axis_name, self.batch_axis_name),
            **attention_options(
                mask,
                self.num_heads,
                self.axis_name,
                bias=bias,
                is_causal=is_causal,
                score_mod=score_mod,
                query_coords=query_coords,
                key_coords=key_coords,
                plan=plan,
                scale=self.scale,
                normalizer=self.normalizer,
                dropout=self._dropout(inputs_q, deterministic, rngs),
                precision=self.precision,
                implementation=self.implementation,
                input_positions=input_positions,
            ),
        )

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

    def set_view(self, deterministic: bool | None = None, decode: bool | None = None) -> None:
        """Class method used by `nnx.view`.

        Args:
          deterministic: If True, dropout is disabled.
          decode: Not in this version: only None or False.
        """
        refuse_decode(decode)
        if decode is not None:
            self.decode = decode
        if deterministic is not None:
            self.deterministic = deterministic

    def init_cache(self, input_shape: Sequence[int], dtype: Dtype = jnp.float32) -> None:
        """Not in this version: raises, because there is no key/value cache.

        Args:
          input_shape: As in `flax.nnx.MultiHeadAttention.init_cache`.
          dtype: As there.
        """
        refuse_decode(True, "init_cache")
