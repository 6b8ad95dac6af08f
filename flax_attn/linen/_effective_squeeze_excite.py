"""Effective squeeze-and-excitation as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.vision import effective_squeeze_excite_gate


class EffectiveSqueezeExcite(LayerModule, kw_only=True):
    """Effective squeeze-and-excitation, `flax_attn.vision.effective_squeeze_excite`.

    Parameter `project`. Sows `gate` `[*B, 1, 1, C]`.

    Attributes:
      use_bias: If True, the layer has a bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.EffectiveSqueezeExcite().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    use_bias: bool = True
    gate_fn: Activation = jax.nn.hard_sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = self._image(x)
        project = self._dense(x.shape[-1], "project", use_bias=self.use_bias)
        return self._scale(x, effective_squeeze_excite_gate(x, project, gate_fn=self.gate_fn))
