"""Additive attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn.attention import additive_attention
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module


class AdditiveAttention(Module):
    """Additive (Bahdanau) attention, `flax_attn.additive_attention`.

    Parameters `query`, `key`, `score`, without biases; sows `attention_weights` `[*B, T, S]`.

    Attributes:
      hidden_features: M, the width of the hidden layer.
      dtype: dtype of the maps, as in Flax.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> query, key, value = jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
      >>> attend = linen.AdditiveAttention(hidden_features=8)
      >>> attend.init_with_output(jax.random.key(0), query, key, value)[0].shape
      (2, 1, 4)
    """

    hidden_features: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None
    ) -> Any:
        """Attend from `[*B, T, Dq]` to `[*B, S, Dk]`, `[*B, S, Dv]`; returns `[*B, T, Dv]`."""
        dense = functools.partial(
            Dense,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
        )
        output, weights = additive_attention(
            query,
            key,
            value,
            dense(self.hidden_features, name="query"),
            dense(self.hidden_features, name="key"),
            dense(1, name="score"),
            mask=mask,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return output
