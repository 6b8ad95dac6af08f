"""Double attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import double_attention
from flax_attn.vision._double_attention import double_attention_features


class DoubleAttention(Module):
    """Double attention, `flax_attn.vision.double_attention`.

    Parameters `value`, `gather`, `distribute`, `out`. Sows `attention_weights`, the pair of
    gathering and distributing weights, each `[*B, H, W, S]`.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      num_descriptors: S; R by default.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.DoubleAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        num_descriptors: int | None = None,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden, descriptors = double_attention_features(
            in_features, reduction, hidden_features, num_descriptors
        )
        layers = self._layers(rngs, **layer_options)
        self.value = layers.linear(in_features, hidden, use_bias=use_bias)
        self.gather = layers.linear(in_features, descriptors, use_bias=use_bias)
        self.distribute = layers.linear(in_features, descriptors, use_bias=use_bias)
        self.out = layers.linear(hidden, in_features, use_bias=use_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gather and distribute the features of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = double_attention(
            x, self.value, self.gather, self.distribute, self.out, return_weights=True
        )
        self._sow("attention_weights", weights)
        return y
