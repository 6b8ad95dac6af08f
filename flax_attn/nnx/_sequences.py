"""Additive attention and learned positions, as NNX modules."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn.attention import additive_attention
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.positions import learned


class AdditiveAttention(Module):
    """Additive (Bahdanau) attention, `flax_attn.additive_attention`.

    Parameters `query`, `key`, `score`. Sows `attention_weights` `[*B, T, S]`.

    Args:
      in_features: Dq, the width of the queries.
      hidden_features: M, the width of the hidden layer.
      in_kv_features: Dk, the width of the keys; Dq by default.

    Example:
      >>> q, k, v = jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
      >>> nnx.AdditiveAttention(20, 8, in_kv_features=2, rngs=rngs)(q, k, v).shape
      (2, 1, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        in_kv_features: int | None = None,
        use_bias: bool = False,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        if in_kv_features is None:
            in_kv_features = in_features
        self.query = layers.linear(in_features, hidden_features)
        self.key = layers.linear(in_kv_features, hidden_features)
        self.score = layers.linear(hidden_features, 1)

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None
    ) -> Any:
        """Attend from `[*B, T, Dq]` to `[*B, S, Dk]`, `[*B, S, Dv]`; returns `[*B, T, Dv]`."""
        output, weights = additive_attention(
            query, key, value, self.query, self.key, self.score, mask=mask, return_weights=True
        )
        return self._sown(output, attention_weights=weights)


class LearnedPositions(Module):
    """A table of learned positions, `flax_attn.positions.learned`.

    Parameter `embedding` `[P, M]`, named as in Flax's `Embed`.

    Args:
      max_length: P, the number of positions.
      features: M, the width of the encoding.
      dtype: dtype of the encoding; that of the table by default.
      param_dtype: dtype of the table.
      embedding_init: Initializer of the table.

    Example:
      >>> nnx.LearnedPositions(16, 8, rngs=rngs)(jnp.arange(10)).shape
      (10, 8)
    """

    def __init__(
        self,
        max_length: int,
        features: int,
        *,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        embedding_init: Initializer = nnx.initializers.normal(0.02),
        rngs: nnx.Rngs,
    ):
        layers = self._layers_for(None, rngs, param_dtype=param_dtype)
        self.embedding = layers.param(embedding_init, max_length, features)
        self.dtype = dtype

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Look up positions `[*T]`; returns `[*T, M]`."""
        table = self.embedding[...]
        return learned(positions, table if self.dtype is None else table.astype(self.dtype))
