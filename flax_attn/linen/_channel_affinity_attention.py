"""DANet's channel attention as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flax_attn.linen._module import Module
from flax_attn.vision import channel_affinity_attention


class ChannelAffinityAttention(Module, kw_only=True):
    """DANet's channel attention, `flax_attn.vision.channel_affinity_attention`.

    Parameter `gamma`, a number that starts at 0, so that the module starts as the identity. Sows
    `attention_weights` `[*B, C, C]`.

    Attributes:
      param_dtype: dtype of the parameter.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.ChannelAffinityAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend from channel to channel of an image `[*B, H, W, C]`."""
        gamma = self.param("gamma", nn.initializers.zeros_init(), (), self.param_dtype)
        y, weights = channel_affinity_attention(x, gamma, return_weights=True)
        self.sow("intermediates", "attention_weights", weights)
        return y
