"""The gated channel transformation as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_attn.nnx._module import Module
from flax_attn.vision import gated_channel_transform_gate


class GatedChannelTransform(Module):
    """The gated channel transformation, `flax_attn.vision.gated_channel_transform`.

    Parameters `alpha`, `gamma`, `beta` `[C]`, which start at 1, 0 and 0, so that the module starts
    as the identity. Sows `gate` `[*B, 1, 1, C]`, the factor 1 + tanh(e n + β).

    Args:
      in_features: C.
      param_dtype: dtype of the parameters.
      rngs: Not needed: no parameter is random.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import nnx
      >>> nnx.GatedChannelTransform(16)(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        epsilon: float = 1e-5,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        super().__init__(in_features)
        self.alpha = nnx.Param(jnp.ones(in_features, param_dtype))
        self.gamma = nnx.Param(jnp.zeros(in_features, param_dtype))
        self.beta = nnx.Param(jnp.zeros(in_features, param_dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = gated_channel_transform_gate(
            x, self.alpha[...], self.gamma[...], self.beta[...], epsilon=self.epsilon
        )
        return self._scale(x, gate)
