"""Cross-covariance attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import head_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import cross_covariance_attention


class CrossCovarianceAttention(Module):
    """Cross-covariance attention, `flax_attn.vision.cross_covariance_attention`.

    Parameters `query`, `key`, `value`, `out`, `temperature`. Sows `attention_weights`
    `[*B, N, D, D]`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each.
      use_bias: If True, queries, keys and values have biases; `out` always has one.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.CrossCovarianceAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        use_bias: bool = False,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        heads = (num_heads, head_features("CrossCovarianceAttention", in_features, num_heads))
        layers = self._layers(rngs, **layer_options)
        self.query = layers.heads(in_features, heads, use_bias=use_bias)
        self.key = layers.heads(in_features, heads, use_bias=use_bias)
        self.value = layers.heads(in_features, heads, use_bias=use_bias)
        self.out = layers.join(heads, in_features)
        self.temperature = layers.constant(1, num_heads)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = cross_covariance_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            self.temperature[...],
            return_weights=True,
        )
        self._sow("attention_weights", weights)
        return y
