"""Additive attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn.attention import additive_attention
from flax_attn.linen._module import LayerModule


class AdditiveAttention(LayerModule):
    """Additive (Bahdanau) attention, `flax_attn.additive_attention`.

    Parameters `query`, `key`, `score`, without biases. Sows `attention_weights` `[*B, T, S]`.

    Attributes:
      hidden_features: M, the width of the hidden layer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> query, key, value = jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
      >>> attention = linen.AdditiveAttention(hidden_features=8)
      >>> attention.init_with_output(jax.random.key(0), query, key, value)[0].shape
      (2, 1, 4)
    """

    hidden_features: int

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None
    ) -> Any:
        """Attend from `[*B, T, Dq]` to `[*B, S, Dk]`, `[*B, S, Dv]`; returns `[*B, T, Dv]`."""
        output, weights = additive_attention(
            query,
            key,
            value,
            self._dense(self.hidden_features, "query", use_bias=False),
            self._dense(self.hidden_features, "key", use_bias=False),
            self._dense(1, "score", use_bias=False),
            mask=mask,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return output
