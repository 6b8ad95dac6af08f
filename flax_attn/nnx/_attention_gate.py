"""The attention gate as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, Map, check_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import attention_gate_gate
from flax_attn.vision._attention_gate import attention_gate_features


class AttentionGate(Module):
    """The attention gate of Attention U-Net, `flax_attn.vision.attention_gate`.

    Parameters `theta`, `phi`, `psi`, and with a norm `theta_norm`, `phi_norm`, `psi_norm`. Sows
    `gate` `[*B, H, W, 1]`.

    Args:
      in_features: C.
      gating_features: G, the channels of the gating signal; C by default.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      strides: Strides and kernel size of θ. The versions with a norm have 1.
      use_bias: If True, φ and ψ have biases. θ has none, because the bias of φ is added to it.
      norm: Makes a normalisation after each layer, for example `nnx.BatchNorm`; None for none.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> x, gating = jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 24))
      >>> nnx.AttentionGate(16, gating_features=24, rngs=flax_nnx.Rngs(0))(x, gating).shape
      (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        gating_features: int | None = None,
        reduction: int = 2,
        hidden_features: int | None = None,
        strides: int = 2,
        use_bias: bool = True,
        norm: Callable[..., Any] | None = None,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = attention_gate_features(in_features, reduction, hidden_features, strides)
        layers = self._layers(rngs, **layer_options)
        self.gating_features = in_features if gating_features is None else gating_features
        self.theta = layers.conv(
            in_features, hidden, strides, use_bias=False, strides=strides, padding=0
        )
        self.phi = layers.linear(self.gating_features, hidden, use_bias=use_bias)
        self.psi = layers.linear(hidden, 1, use_bias=use_bias)
        self.theta_norm = layers.norm(norm, hidden)
        self.phi_norm = layers.norm(norm, hidden)
        self.psi_norm = layers.norm(norm, 1)
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array, gating: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]` by a signal `[*B, h, w, G]`."""
        self._check(x)
        check_features("AttentionGate", gating, self.gating_features, "gating")
        gate = attention_gate_gate(
            x,
            gating,
            _normalised(self.theta, self.theta_norm),
            _normalised(self.phi, self.phi_norm),
            _normalised(self.psi, self.psi_norm),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


def _normalised(layer: Map, norm: Map | None) -> Map:
    return layer if norm is None else lambda x: norm(layer(x))
