"""Multi-head attention as a Linen module."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer, PrecisionLike

from flax_attn._checks import output_features
from flax_attn._modules import (
    MODULE,
    adapted,
    attention_options,
    check_dropout_rate,
    head_sizes,
    make_dropout,
    refuse_decode,
    refuse_einsum,
    resolve_inputs,
    summed_over,
    with_weights,
)
from flax_attn.attention import Dropout, dot_product_attention, multi_head_attention
from flax_attn.coords import Coords
from flax_attn.linen._layers import DenseGeneral
from flax_attn.linen._module import Module
from flax_attn.masks import Mask, Plan
from flax_attn.normalizers import Normalizer
from flax_attn.scores import ScoreMod


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
    normalize_qk: bool = False
    force_fp32_for_softmax: bool = False
    qkv_dot_general: Callable[..., jax.Array] | None = None
    out_dot_general: Callable[..., jax.Array] | None = None
    qkv_dot_general_cls: Any = None
    out_dot_general_cls: Any = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    value_head_dim: int | None = None
    scale: float | None = None
    normalizer: Normalizer | None = None
    implementation: str | Sequence[str] | None = None
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
    ) -> jax.Array:
        """Attend from `inputs_q` to `inputs_k`, reading `inputs_v`.

        See `flax_attn.nnx.MultiHeadAttention`. The key of dropout is `dropout_rng`, by default
        `make_rng("dropout")`. `deterministic` is given here or as the attribute, not both.
        """
        if isinstance(self.dtype, int):  # the second argument of the NNX module
            raise TypeError(
                f"{MODULE}: dtype must be a dtype, got {self.dtype}. The width of the input is "
                f"inferred; that of the heads together is qkv_features={self.dtype}."
            )
        refuse_decode(self.decode)
        refuse_einsum(self.qk_attn_weights_einsum_cls, self.attn_weights_value_einsum_cls)
        given = inputs_k, inputs_v, inputs_kv, key_coords
        if all(x is None for x in given):
            key_coords = query_coords
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
        norm = functools.partial(
            nn.LayerNorm, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype
        )
        attention = self.attention_fn
        if sow_weights:
            attention = with_weights(attention, functools.partial(self.sow, "intermediates"))
        return multi_head_attention(
            inputs_q,
            inputs_k,
            project((self.num_heads, sizes.head_dim), name="query"),
            project((sizes.num_kv_heads, sizes.head_dim), name="key"),
            project((sizes.num_kv_heads, sizes.value_head_dim), name="value"),
            out,
            inputs_v=inputs_v,
            query_norm=norm(name="query_ln") if self.normalize_qk else None,
            key_norm=norm(name="key_ln") if self.normalize_qk else None,
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
                dropout=self._dropout(inputs_q, deterministic, dropout_rng),
                precision=self.precision,
                implementation=self.implementation,
            ),
        )

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
