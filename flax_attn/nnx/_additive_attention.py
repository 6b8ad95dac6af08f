"""Additive attention as an NNX module."""

from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn.attention import additive_attention
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module


class AdditiveAttention(Module):
    """Additive (Bahdanau) attention, `flax_attn.additive_attention`.

    Parameters `query`, `key`, `score`, without biases. Sows `attention_weights` `[*B, T, S]`.

    Args:
      in_features: Dq, the width of the queries.
      hidden_features: M, the width of the hidden layer.
      in_kv_features: Dk, the width of the keys; Dq by default.
      rngs: Keys of the parameters.
      **layer_options: See `LayerOptions`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> query, key, value = jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
      >>> attention = nnx.AdditiveAttention(20, 8, in_kv_features=2, rngs=flax_nnx.Rngs(0))
      >>> attention(query, key, value).shape
      (2, 1, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        in_kv_features: int | None = None,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        if in_kv_features is None:
            in_kv_features = in_features
        layers = self._layers(rngs, **layer_options)
        self.query = layers.linear(in_features, hidden_features, use_bias=False)
        self.key = layers.linear(in_kv_features, hidden_features, use_bias=False)
        self.score = layers.linear(hidden_features, 1, use_bias=False)

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None
    ) -> Any:
        """Attend from `[*B, T, Dq]` to `[*B, S, Dk]`, `[*B, S, Dv]`; returns `[*B, T, Dv]`."""
        output, weights = additive_attention(
            query, key, value, self.query, self.key, self.score, mask=mask, return_weights=True
        )
        self._sow("attention_weights", weights)
        return output
