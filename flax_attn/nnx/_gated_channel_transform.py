"""The gated channel transformation as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_attn._checks import check_features
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import gated_channel_transform_gate
from flax_attn.vision._gates import apply_gate


class GatedChannelTransform(Module):
    """The gated channel transformation, `flax_attn.vision.gated_channel_transform`.

    Parameters `alpha` of ones, `gamma` and `beta` of zeros, each `[C]`, so that it starts as the
    identity; sows `gate` `[*B, 1, 1, C]`, the factor 1 + tanh(e n + β).

    Args:
      in_features: C.
      epsilon: ε, which keeps both roots' gradients finite on an image of zeros.
      param_dtype: dtype of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import nnx
      >>> nnx.GatedChannelTransform(16)(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self, in_features: int, *, epsilon: float = 1e-5, param_dtype: Dtype = jnp.float32
    ):
        self.alpha = nnx.Param(jnp.ones(in_features, param_dtype))
        self.gamma = nnx.Param(jnp.zeros(in_features, param_dtype))
        self.beta = nnx.Param(jnp.zeros(in_features, param_dtype))
        self.epsilon = epsilon
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        check_features("GatedChannelTransform", x, self.in_features)
        gate = gated_channel_transform_gate(
            x, self.alpha[...], self.gamma[...], self.beta[...], epsilon=self.epsilon
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
