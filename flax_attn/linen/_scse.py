"""Concurrent spatial and channel squeeze-and-excitation as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import Activation, reduced_features
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn.linen._module import LayerModule
from flax_attn.vision._scse import Combine, scse_and_gate


class SCSE(LayerModule, kw_only=True):
    """Concurrent spatial and channel squeeze-and-excitation, `flax_attn.vision.scse`.

    Parameters `reduce`, `expand`, `project`. Sows `gate` `[*B, H, W, C]`, both gates combined.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.SCSE().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 2
    hidden_features: int | None = None
    combine: Combine = "max"
    use_bias: bool = True
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels and the places of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = reduced_features("SCSE", features, self.reduction, self.hidden_features)
        y, gate = scse_and_gate(
            x,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            self._dense(features, "expand", use_bias=self.use_bias),
            self._dense(1, "project", use_bias=self.use_bias, dot_general=dot_of_one),
            self.combine,
            self.activation_fn,
            self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return y
