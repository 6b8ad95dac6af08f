"""Spatial group-wise enhancement as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, group_features
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import spatial_group_enhance_gate
from flax_attn.vision._gates import apply_gate


class SpatialGroupEnhance(Module):
    """Spatial group-wise enhancement, `flax_attn.vision.spatial_group_enhance`.

    Parameters `scale` and `bias`, `[groups]`; sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
      groups: G, the number of groups of consecutive channels, of which C is a multiple.
      epsilon: ε, added to the deviation.
      gate_fn: From the likeness to the gate.
      param_dtype: dtype of the parameters.
      scale_init: Initializer of the scale.
      bias_init: Initializer of the bias.
      rngs: Keys for the parameters.

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
        group_features("SpatialGroupEnhance", in_features, groups)
        self.scale = nnx.Param(scale_init(rngs.params(), (groups,), param_dtype))
        self.bias = nnx.Param(bias_init(rngs.params(), (groups,), param_dtype))
        self.epsilon = epsilon
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        check_features("SpatialGroupEnhance", x, self.in_features)
        gate = spatial_group_enhance_gate(
            x, self.scale[...], self.bias[...], epsilon=self.epsilon, gate_fn=self.gate_fn
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
