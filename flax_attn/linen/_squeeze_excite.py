"""Squeeze-and-excitation as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._module import LayerModule
from flax_attn.vision import squeeze_excite_gate


class SqueezeExcite(LayerModule, kw_only=True):
    """Squeeze-and-excitation, `flax_attn.vision.squeeze_excite`.

    Parameters `reduce`, `expand`. Sows `gate` `[*B, 1, 1, C]`.

    Attributes:
      reduction: R = C // reduction; 16 in the paper.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases, as in the released models of the paper.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.SqueezeExcite().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 4
    hidden_features: int | None = None
    use_bias: bool = False
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = reduced_features("SqueezeExcite", features, self.reduction, self.hidden_features)
        gate = squeeze_excite_gate(
            x,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            self._dense(features, "expand", use_bias=self.use_bias),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
