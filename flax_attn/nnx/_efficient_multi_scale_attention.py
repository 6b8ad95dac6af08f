"""Efficient multi-scale attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, check_odd, group_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import efficient_multi_scale_attention_gate


class EfficientMultiScaleAttention(Module):
    """Efficient multi-scale attention, `flax_attn.vision.efficient_multi_scale_attention`.

    Parameters `pointwise`, `norm_scale`, `norm_bias`, `conv`, shared by all groups. Sows `gate`
    `[*B, H, W, C]`.

    Args:
      in_features: C.
      groups: Number of groups of consecutive channels. It divides C.
      kernel_size: Size of the spatial kernel, odd.
      use_bias: If True, both convolutions have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.EfficientMultiScaleAttention(64, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 7, 7, 64))).shape
      (2, 7, 7, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        groups: int = 32,
        kernel_size: int = 3,
        use_bias: bool = True,
        epsilon: float = 1e-5,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        part = group_features("EfficientMultiScaleAttention", in_features, groups)
        size = check_odd("EfficientMultiScaleAttention", kernel_size)
        layers = self._layers(rngs, **layer_options)
        self.pointwise = layers.linear(part, part, use_bias=use_bias)
        self.norm_scale = layers.constant(1, part)
        self.norm_bias = layers.constant(0, part)
        self.conv = layers.conv(part, part, size, use_bias=use_bias)
        self.epsilon = epsilon
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = efficient_multi_scale_attention_gate(
            x,
            self.pointwise,
            self.norm_scale[...],
            self.norm_bias[...],
            self.conv,
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
