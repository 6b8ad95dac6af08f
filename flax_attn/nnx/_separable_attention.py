"""Separable self-attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import separable_attention


class SeparableAttention(Module):
    """Separable self-attention, `flax_attn.vision.separable_attention`.

    Parameters `score`, `key`, `value`, `out`. Sows `attention_weights` `[*B, H, W, 1]`.

    Args:
      in_features: C.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.SeparableAttention(16, patch_size=2, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 8, 6, 16))).shape
      (2, 8, 6, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        patch_size: int = 1,
        use_bias: bool = True,
        activation_fn: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        layers = self._layers(rngs, **layer_options)
        self.score = layers.linear(in_features, 1, use_bias=use_bias)
        self.key = layers.linear(in_features, in_features, use_bias=use_bias)
        self.value = layers.linear(in_features, in_features, use_bias=use_bias)
        self.out = layers.linear(in_features, in_features, use_bias=use_bias)
        self.patch_size = patch_size
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = separable_attention(
            x,
            self.score,
            self.key,
            self.value,
            self.out,
            patch_size=self.patch_size,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        self._sow("attention_weights", weights)
        return y
