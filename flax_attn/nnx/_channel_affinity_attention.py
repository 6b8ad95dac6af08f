"""DANet's channel attention as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_attn.nnx._module import Module
from flax_attn.vision import channel_affinity_attention


class ChannelAffinityAttention(Module):
    """DANet's channel attention, `flax_attn.vision.channel_affinity_attention`.

    Parameter `gamma`, a number that starts at 0, so that the module starts as the identity. Sows
    `attention_weights` `[*B, C, C]`.

    Args:
      in_features: C; any number of channels if it is left out.
      param_dtype: dtype of the parameter.
      rngs: Not needed: no parameter is random.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import nnx
      >>> nnx.ChannelAffinityAttention(16)(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        super().__init__(in_features)
        self.gamma = nnx.Param(jnp.zeros((), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend from channel to channel of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = channel_affinity_attention(x, self.gamma[...], return_weights=True)
        self._sow("attention_weights", weights)
        return y
