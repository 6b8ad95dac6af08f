"""Spatial group-wise enhancement as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, group_features
from flax_attn.nnx._module import Module
from flax_attn.vision import spatial_group_enhance_gate


class SpatialGroupEnhance(Module):
    """Spatial group-wise enhancement, `flax_attn.vision.spatial_group_enhance`.

    Parameters `scale` and `bias` `[groups]`. Sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
      groups: G, the number of groups of consecutive channels. It divides C.
      param_dtype: dtype of the parameters.
      scale_init: Initializer of the scale.
      bias_init: Initializer of the bias.
      rngs: Keys of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.SpatialGroupEnhance(64, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 64))).shape
      (2, 7, 7, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        groups: int = 64,
        epsilon: float = 1e-5,
        gate_fn: Activation = jax.nn.sigmoid,
        param_dtype: Dtype = jnp.float32,
        scale_init: Initializer = nnx.initializers.zeros,
        bias_init: Initializer = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features)
        group_features("SpatialGroupEnhance", in_features, groups)
        layers = self._layers(rngs, param_dtype=param_dtype)
        self.scale = layers.param(scale_init, groups)
        self.bias = layers.param(bias_init, groups)
        self.epsilon = epsilon
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = spatial_group_enhance_gate(
            x, self.scale[...], self.bias[...], epsilon=self.epsilon, gate_fn=self.gate_fn
        )
        return self._scale(x, gate)
