"""Outlook attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import outlook_attention
from flax_attn.vision._outlook_attention import num_scores


class OutlookAttention(Module):
    """Outlook attention, `flax_attn.vision.outlook_attention`.

    Parameters `score`, `value`, `out`. Sows `attention_weights` `[*B, H', W', N, k², k²]`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each; C / 32 in the paper.
      use_bias: If True, the values have a bias; the other layers always have one.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.OutlookAttention(16, num_heads=4, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        kernel_size: int = 3,
        stride: int = 1,
        use_bias: bool = False,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        layers = self._layers(rngs, **layer_options)
        self.score = layers.linear(in_features, num_scores(in_features, num_heads, kernel_size))
        self.value = layers.linear(in_features, in_features, use_bias=use_bias)
        self.out = layers.linear(in_features, in_features)
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the neighbouring places of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = outlook_attention(
            x,
            self.score,
            self.value,
            self.out,
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            return_weights=True,
        )
        self._sow("attention_weights", weights)
        return y
