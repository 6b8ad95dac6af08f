"""Frequency channel attention as an NNX module."""

from collections.abc import Sequence
from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import frequency_channel_attention_gate


class FrequencyChannelAttention(Module):
    """Frequency channel attention, `flax_attn.vision.frequency_channel_attention`.

    Parameters `reduce`, `expand`; the cosines are constants. Sows `gate` `[*B, 1, 1, C]`.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.FrequencyChannelAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 16,
        hidden_features: int | None = None,
        frequencies: int | Sequence[tuple[int, int]] = 16,
        dct_size: int | tuple[int, int] = 7,
        use_bias: bool = False,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = reduced_features(
            "FrequencyChannelAttention", in_features, reduction, hidden_features
        )
        layers = self._layers(rngs, **layer_options)
        self.reduce = layers.linear(in_features, hidden, use_bias=use_bias)
        self.expand = layers.linear(hidden, in_features, use_bias=use_bias)
        self.frequencies = frequencies
        self.dct_size = dct_size
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = frequency_channel_attention_gate(
            x,
            self.reduce,
            self.expand,
            frequencies=self.frequencies,
            dct_size=self.dct_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
