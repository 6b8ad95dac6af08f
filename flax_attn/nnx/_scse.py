"""Concurrent spatial and channel squeeze-and-excitation as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, reduced_features
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision._scse import Combine, scse_and_gate


class SCSE(Module):
    """Concurrent spatial and channel squeeze-and-excitation, `flax_attn.vision.scse`.

    Parameters `reduce`, `expand`, `project`. Sows `gate` `[*B, H, W, C]`, both gates combined.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.SCSE(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 2,
        hidden_features: int | None = None,
        combine: Combine = "max",
        use_bias: bool = True,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = reduced_features("SCSE", in_features, reduction, hidden_features)
        layers = self._layers(rngs, **layer_options)
        self.reduce = layers.linear(in_features, hidden, use_bias=use_bias)
        self.expand = layers.linear(hidden, in_features, use_bias=use_bias)
        self.project = layers.linear(in_features, 1, use_bias=use_bias, dot_general=dot_of_one)
        self.combine = combine
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels and the places of an image `[*B, H, W, C]`."""
        self._check(x)
        y, gate = scse_and_gate(
            x,
            self.reduce,
            self.expand,
            self.project,
            self.combine,
            self.activation_fn,
            self.gate_fn,
        )
        self._sow("gate", gate)
        return y
