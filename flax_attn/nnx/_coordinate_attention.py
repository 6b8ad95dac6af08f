"""Coordinate attention as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import coordinate_attention_gate


class CoordinateAttention(Module):
    """Coordinate attention, `flax_attn.vision.coordinate_attention`.

    Parameters `reduce`, `norm`, `expand_height`, `expand_width`. Sows `gate`, the pair
    `[*B, H, 1, C]`, `[*B, 1, W, C]`.

    Args:
      in_features: C.
      reduction: R = max(min_features, C // reduction).
      min_features: The smallest R that `reduction` gives.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.CoordinateAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 32,
        min_features: int = 8,
        hidden_features: int | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.hard_swish,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = reduced_features(
            "CoordinateAttention", in_features, reduction, hidden_features, least=min_features
        )
        layers = self._layers(rngs, **layer_options)
        self.reduce = layers.linear(in_features, hidden, use_bias=use_bias)
        self.norm = layers.norm(norm, hidden)
        self.expand_height = layers.linear(hidden, in_features, use_bias=use_bias)
        self.expand_width = layers.linear(hidden, in_features, use_bias=use_bias)
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        self._check(x)
        gates = coordinate_attention_gate(
            x,
            self.reduce,
            self.norm,
            self.expand_height,
            self.expand_width,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, *gates)
