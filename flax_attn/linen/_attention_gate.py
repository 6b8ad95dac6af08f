"""The attention gate as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, Map
from flax_attn.linen._module import LayerModule
from flax_attn.vision import attention_gate_gate
from flax_attn.vision._attention_gate import attention_gate_features


class AttentionGate(LayerModule, kw_only=True):
    """The attention gate of Attention U-Net, `flax_attn.vision.attention_gate`.

    Parameters `theta`, `phi`, `psi`, and with a norm `theta_norm`, `phi_norm`, `psi_norm`. Sows
    `gate` `[*B, H, W, 1]`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      strides: Strides and kernel size of θ. The versions with a norm have 1.
      use_bias: If True, φ and ψ have biases. θ has none, because the bias of φ is added to it.
      norm: Makes a normalisation after each layer, for example
        `functools.partial(nn.BatchNorm, use_running_average=not train)`; None for none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x, gating = jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 24))
      >>> linen.AttentionGate().init_with_output(jax.random.key(0), x, gating)[0].shape
      (2, 8, 8, 16)
    """

    reduction: int = 2
    hidden_features: int | None = None
    strides: int = 2
    use_bias: bool = True
    norm: Any = None
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, gating: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]` by a signal `[*B, h, w, G]`."""
        x = self._image(x)
        hidden = attention_gate_features(
            x.shape[-1], self.reduction, self.hidden_features, self.strides
        )
        theta = self._conv(
            hidden, self.strides, "theta", use_bias=False, strides=self.strides, padding=0
        )
        gate = attention_gate_gate(
            x,
            gating,
            self._normalised(theta),
            self._normalised(self._dense(hidden, "phi", use_bias=self.use_bias)),
            self._normalised(self._dense(1, "psi", use_bias=self.use_bias)),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)

    def _normalised(self, layer: nn.Module) -> Map:
        if self.norm is None:
            return layer
        norm = self.norm(name=f"{layer.name}_norm")
        return lambda x: norm(layer(x))
