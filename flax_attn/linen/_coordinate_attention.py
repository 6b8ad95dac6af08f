"""Coordinate attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm, default_norm
from flax_attn.vision import coordinate_attention_gate


class CoordinateAttention(NormModule, kw_only=True):
    """Coordinate attention, `flax_attn.vision.coordinate_attention`.

    Parameters `reduce`, `norm`, `expand_height`, `expand_width`. Sows `gate`, the pair
    `[*B, H, 1, C]`, `[*B, 1, W, C]`.

    Attributes:
      reduction: R = max(min_features, C // reduction).
      min_features: The smallest R that `reduction` gives.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.CoordinateAttention(use_running_average=True)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 32
    min_features: int = 8
    hidden_features: int | None = None
    use_bias: bool = True
    norm: Any = default_norm(BatchNorm)
    activation_fn: Activation = jax.nn.hard_swish
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = reduced_features(
            "CoordinateAttention",
            features,
            self.reduction,
            self.hidden_features,
            least=self.min_features,
        )
        gates = coordinate_attention_gate(
            x,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            self._norm(use_running_average)(name="norm"),
            self._dense(features, "expand_height", use_bias=self.use_bias),
            self._dense(features, "expand_width", use_bias=self.use_bias),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, *gates)
