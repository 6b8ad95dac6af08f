"""Spatial group-wise enhancement as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, group_features
from flax_attn.linen._module import Module
from flax_attn.vision import spatial_group_enhance_gate


class SpatialGroupEnhance(Module, kw_only=True):
    """Spatial group-wise enhancement, `flax_attn.vision.spatial_group_enhance`.

    Parameters `scale` and `bias` `[groups]`. Sows `gate` `[*B, H, W, C]`.

    Attributes:
      groups: G, the number of groups of consecutive channels. It divides C.
      param_dtype: dtype of the parameters.
      scale_init: Initializer of the scale.
      bias_init: Initializer of the bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 64))
      >>> linen.SpatialGroupEnhance().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 64)
    """

    groups: int = 64
    epsilon: float = 1e-5
    gate_fn: Activation = jax.nn.sigmoid
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        x = self._image(x)
        group_features("SpatialGroupEnhance", x.shape[-1], self.groups)
        gate = spatial_group_enhance_gate(
            x,
            self.param("scale", self.scale_init, (self.groups,), self.param_dtype),
            self.param("bias", self.bias_init, (self.groups,), self.param_dtype),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
