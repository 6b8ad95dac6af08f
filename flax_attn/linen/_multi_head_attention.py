"""Multi-head attention as a Linen module."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer, PrecisionLike

from flax_attn._checks import output_features
from flax_attn._modules import (
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
    refuse_einsum,
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
from flax_attn.linen._layers import DenseGeneral
from flax_attn.linen._module import Module
from flax_attn.masks import Mask, Plan
from flax_attn.normalizers import Normalizer
from flax_attn.positions import Rotary
from flax_attn.scores import ScoreMod

_LayerNorm = functools.partial(nn.LayerNorm, use_bias=False)


class MultiHeadAttention(Module):
    """Multi-head attention; see `flax_attn.nnx.MultiHeadAttention`.

    Takes the constructor of `flax.linen.MultiHeadDotProductAttention` and has its parameters, so
    that weights move both ways. The input widths are inferred.

    Attributes:
      qk_attn_weights_einsum_cls: Not in this version: only None.
      attn_weights_value_einsum_cls: Not in this version: only None.

    Example:
      >>> attention, x = linen.MultiHeadAttention(num_heads=4), jnp.ones((2, 10, 32))
      >>> attention.apply(attention.init(key, x), x, is_causal=True).shape
      (2, 10, 32)
    """

    num_heads: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    qkv_features: int | None = None
    out_features: int | None = None
    broadcast_dropout: bool = True
    dropout_rate: float = 0.0
    deterministic: bool | None = None
    precision: PrecisionLike = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros_init()
    out_bias_init: Initializer | None = None
    use_bias: bool = True
    attention_fn: Callable[..., jax.Array] = dot_product_attention
    decode: bool = False
    normalize_qk: bool | Literal["layer", "rms"] = False
    force_fp32_for_softmax: bool = False
    qkv_dot_general: Callable[..., jax.Array] | None = None
    out_dot_general: Callable[..., jax.Array] | None = None
    qkv_dot_general_cls: Any = None
    out_dot_general_cls: Any = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    value_head_dim: int | None = None
    scale: float | None = None
    rotary: Rotary | None = None
    mask: Mask | None = None
    score_mod: ScoreMod | None = None
    normalizer: Normalizer | None = None
    sink: bool = False
    sink_init: Initializer = nn.initializers.zeros_init()
    output_gate: bool = False
    shares_key_value: bool = False
    implementation: Choice = None
    placement: Placement | None = None
    axis_name: str | None = None
    batch_axis_name: str | None = None
    qk_attn_weights_einsum_cls: Any = None
    attn_weights_value_einsum_cls: Any = None

    @nn.compact
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
        dropout_rng: jax.Array | None = None,
        sow_weights: bool = False,
        inputs_kv: jax.Array | None = None,
        input_positions: jax.Array | None = None,
        cache: Cache | None = None,
        key_value: tuple[jax.Array, jax.Array] | None = None,
        return_key_value: bool = False,
    ) -> Any:
        """Attend from `inputs_q` to `inputs_k`, reading `inputs_v`.

        See `flax_attn.nnx.MultiHeadAttention`. The key of dropout is `dropout_rng`, by default
        `make_rng("dropout")`. `deterministic` is given here or as the attribute, not both.
        """
        if isinstance(self.dtype, int):  # the second argument of the NNX module
            raise TypeError(
                f"{MODULE}: dtype must be a dtype, got {self.dtype}. The width of the input is "
                f"inferred; that of the heads together is qkv_features={self.dtype}."
            )
        refuse_einsum(self.qk_attn_weights_einsum_cls, self.attn_weights_value_einsum_cls)
        check_norm(self.normalize_qk)
        check_parts(self.mask, self.normalizer, self.sink)
        given = inputs_k, inputs_v, inputs_kv, key_coords, key_value, cache
        if all(x is None for x in given) and not self.decode:
            key_coords = query_coords
        check_key_value(
            key_value,
            self.shares_key_value and not self.decode,
            inputs_k=inputs_k,
            inputs_v=inputs_v,
            inputs_kv=inputs_kv,
        )
        if self.decode:
            check_decoding(
                query_coords=query_coords,
                key_coords=key_coords,
                cache=cache,
                key_value=key_value,
                return_key_value=return_key_value,
                shares_key_value=self.shares_key_value,
            )
        inputs_k, inputs_v = resolve_inputs(inputs_q, inputs_k, inputs_v, inputs_kv)
        sizes = head_sizes(
            inputs_q.shape[-1],
            self.num_heads,
            self.num_kv_heads,
            self.qkv_features,
            self.head_dim,
            self.value_head_dim,
            self.axis_name,
        )
        dense = functools.partial(
            DenseGeneral,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
        )
        project = functools.partial(
            dense,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dot_general=self.qkv_dot_general,
            dot_general_cls=self.qkv_dot_general_cls,
        )
        out = dense(
            output_features(MODULE, inputs_q.shape[-1], self.out_features),
            axis=(-2, -1),
            kernel_init=self.out_kernel_init or self.kernel_init,
            bias_init=self.out_bias_init or self.bias_init,
            dot_general=summed_over(
                self.axis_name,
                self.out_dot_general_cls() if self.out_dot_general_cls else self.out_dot_general,
            ),
            name="out",
        )
        query = project((self.num_heads, sizes.head_dim), name="query")
        key = value = query_norm = key_norm = gate = sink = None
        if not self.shares_key_value:
            key = project((sizes.num_kv_heads, sizes.head_dim), name="key")
            value = project((sizes.num_kv_heads, sizes.value_head_dim), name="value")
        if self.normalize_qk:
            norm = functools.partial(
                nn.RMSNorm if self.normalize_qk == "rms" else _LayerNorm,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            query_norm = norm(name="query_ln")
            key_norm = None if self.shares_key_value else norm(name="key_ln")
        if self.output_gate:
            gate = project((self.num_heads, sizes.value_head_dim), name="gate")
        if self.sink:
            sink = self.param("sink", self.sink_init, (self.num_heads,), self.param_dtype)
        attention = self.attention_fn
        if sow_weights:
            attention = with_weights(attention, functools.partial(self.sow, "intermediates"))
        attend = functools.partial(
            multi_head_attention,
            inputs_q,
            inputs_k,
            query,
            key,
            value,
            out,
            inputs_v=inputs_v,
            query_norm=query_norm,
            key_norm=key_norm,
            rotary=self.rotary,
            gate=gate,
            input_positions=None if self.rotary is None else input_positions,
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
                is_causal=is_causal or self._decodes(),
                score_mod=joined_score_mod(self.score_mod, score_mod),
                query_coords=query_coords,
                key_coords=key_coords,
                plan=plan,
                scale=self.scale,
                normalizer=with_sink(self.normalizer, sink),
                dropout=self._dropout(inputs_q, deterministic, dropout_rng),
                precision=self.precision,
                implementation=self.implementation,
                placement=self.placement,
                key_value=key_value,
            ),
        )
        if self.decode:
            return self._decode(attend, inputs_q.shape[-2])
        return attend(cache=cache, return_key_value=return_key_value)

    def _decodes(self) -> bool:
        """Whether this call appends to Flax's cache. The first call, `init`, only makes it."""
        return self.decode and self.has_variable("cache", "cached_key")

    def _decode(self, attend: Callable[..., Any], length: int) -> jax.Array:
        """Attend with the keys and values in the collection `cache`, and store the new ones."""
        if not self.is_mutable_collection("cache"):
            raise ValueError(
                f"{MODULE}: the collection 'cache' must be mutable with decode=True. Make it by "
                f"init with inputs of the full length, then "
                f"apply({{'params': params, 'cache': cache}}, x, mutable=['cache'])."
            )
        if not self._decodes():
            output, (key, value) = attend(return_key_value=True)
            self.variable("cache", "cached_key", jnp.zeros, key.shape, key.dtype)
            self.variable("cache", "cached_value", jnp.zeros, value.shape, value.dtype)
            self.variable("cache", "cache_index", jnp.array, 0, jnp.int32)
            return output
        cached_key: Any = self.variable("cache", "cached_key")
        cached_value: Any = self.variable("cache", "cached_value")
        cache_index: Any = self.variable("cache", "cache_index")
        cache = flax_cache(cached_key.value, cached_value.value, cache_index.value)
        output, cache = attend(cache=cache)
        cached_key.value, cached_value.value = cache.keys, cache.values
        cache_index.value = cache_index.value + length
        return output

    def _dropout(
        self, inputs: jax.Array, deterministic: bool | None, key: jax.Array | None
    ) -> Dropout | None:
        check_dropout_rate(self.dropout_rate)
        if self.dropout_rate == 0:
            return None
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return None
        key = self.make_rng("dropout") if key is None else key
        return make_dropout(
            self.dropout_rate, key, self.broadcast_dropout, inputs, self.batch_axis_name
        )
