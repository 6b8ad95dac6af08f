"""The lambda layer as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import lambda_layer
from flax_attn.vision._lambda_layer import lambda_layer_features


class LambdaLayer(Module):
    """The lambda layer, `flax_attn.vision.lambda_layer`.

    Parameters `query`, `query_norm`, `key`, `value`, `value_norm`, `position`.

    Args:
      in_features: C.
      num_heads: N; the values have C // N channels.
      key_features: K, the channels of the keys and of each head's queries.
      kernel_size: r, the size of the lambda convolution, odd.
      use_bias: If True, queries, keys and values have biases; the convolution always has one.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.LambdaLayer(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 4,
        key_features: int = 16,
        kernel_size: int = 9,
        use_bias: bool = False,
        norm: Callable[..., Any] = BatchNorm,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        value_features = lambda_layer_features(in_features, num_heads, key_features, kernel_size)
        query_features = num_heads * key_features
        layers = self._layers(rngs, **layer_options)
        self.query = layers.linear(in_features, query_features, use_bias=use_bias)
        self.query_norm = layers.norm(norm, query_features)
        self.key = layers.linear(in_features, key_features, use_bias=use_bias)
        self.value = layers.linear(in_features, value_features, use_bias=use_bias)
        self.value_norm = layers.norm(norm, value_features)
        self.position = layers.conv(1, key_features, kernel_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        self._check(x)
        return lambda_layer(
            x,
            self.query,
            self.query_norm,
            self.key,
            self.value,
            self.value_norm,
            self.position,
        )
