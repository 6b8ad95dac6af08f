"""Additive attention as an NNX module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn.attention import additive_attention
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow


class AdditiveAttention(Module):
    """Additive (Bahdanau) attention, `flax_attn.additive_attention`.

    Parameters `query`, `key`, `score`, without biases; sows `attention_weights` `[*B, T, S]`.

    Args:
      in_features: Dq, the width of the queries.
      hidden_features: M, the width of the hidden layer.
      in_kv_features: Dk, the width of the keys, default Dq.
      dtype: dtype of the maps, as in Flax.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> query, key, value = jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
      >>> nnx.AdditiveAttention(20, 8, in_kv_features=2, rngs=flax_nnx.Rngs(0))(
      ...     query, key, value
      ... ).shape
      (2, 1, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        in_kv_features: int | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            Linear,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.query = linear(in_features, hidden_features)
        self.key = linear(
            in_features if in_kv_features is None else in_kv_features, hidden_features
        )
        self.score = linear(hidden_features, 1)

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None
    ) -> Any:
        """Attend from `[*B, T, Dq]` to `[*B, S, Dk]`, `[*B, S, Dv]`; returns `[*B, T, Dv]`."""
        output, weights = additive_attention(
            query, key, value, self.query, self.key, self.score, mask=mask, return_weights=True
        )
        sow(self, "attention_weights", weights)
        return output
