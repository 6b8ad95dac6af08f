"""The gated channel transformation as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flax_attn.linen._module import Module
from flax_attn.vision import gated_channel_transform_gate


class GatedChannelTransform(Module, kw_only=True):
    """The gated channel transformation, `flax_attn.vision.gated_channel_transform`.

    Parameters `alpha`, `gamma`, `beta` `[C]`, which start at 1, 0 and 0, so that the module starts
    as the identity. Sows `gate` `[*B, 1, 1, C]`, the factor 1 + tanh(e n + β).

    Attributes:
      param_dtype: dtype of the parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.GatedChannelTransform().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    epsilon: float = 1e-5
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = self._image(x)
        ones, zeros, shape = nn.initializers.ones_init(), nn.initializers.zeros_init(), x.shape[-1:]
        gate = gated_channel_transform_gate(
            x,
            self.param("alpha", ones, shape, self.param_dtype),
            self.param("gamma", zeros, shape, self.param_dtype),
            self.param("beta", zeros, shape, self.param_dtype),
            epsilon=self.epsilon,
        )
        return self._scale(x, gate)
