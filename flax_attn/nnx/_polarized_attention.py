"""Polarized self-attention as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import polarized_attention_gate
from flax_attn.vision._polarized_attention import Layout, polarized_attention_features


class PolarizedAttention(Module):
    """Polarized self-attention, `flax_attn.vision.polarized_attention`.

    Parameters `channel_query`, `channel_value`, `channel_expand`, `spatial_query`, `spatial_value`,
    and `channel_norm` if there is one. Sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
      reduction: R = C / reduction, a whole number.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.
      norm: Makes the normalisation of the channels before their gate, for example
        `functools.partial(nnx.LayerNorm, epsilon=1e-5)`; None for none.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.PolarizedAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        layout: Layout = "parallel",
        reduction: int = 2,
        hidden_features: int | None = None,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = polarized_attention_features(in_features, reduction, hidden_features)
        layers = self._layers(rngs, **layer_options)
        self.channel_query = layers.linear(in_features, 1, use_bias=use_bias)
        self.channel_value = layers.linear(in_features, hidden, use_bias=use_bias)
        self.channel_expand = layers.linear(hidden, in_features, use_bias=use_bias)
        self.channel_norm = layers.norm(norm, in_features)
        self.spatial_query = layers.linear(in_features, hidden, use_bias=use_bias)
        self.spatial_value = layers.linear(in_features, hidden, use_bias=use_bias)
        self.layout = layout
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = polarized_attention_gate(
            x,
            self.channel_query,
            self.channel_value,
            self.channel_expand,
            self.spatial_query,
            self.spatial_value,
            channel_norm=self.channel_norm,
            layout=self.layout,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
