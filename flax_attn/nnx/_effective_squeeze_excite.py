"""Effective squeeze-and-excitation as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import effective_squeeze_excite_gate


class EffectiveSqueezeExcite(Module):
    """Effective squeeze-and-excitation, `flax_attn.vision.effective_squeeze_excite`.

    Parameter `project`. Sows `gate` `[*B, 1, 1, C]`.

    Args:
      in_features: C.
      use_bias: If True, the layer has a bias.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.EffectiveSqueezeExcite(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        use_bias: bool = True,
        gate_fn: Activation = jax.nn.hard_sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        layers = self._layers(rngs, **layer_options)
        self.project = layers.linear(in_features, in_features, use_bias=use_bias)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        return self._scale(x, effective_squeeze_excite_gate(x, self.project, gate_fn=self.gate_fn))
