"""DANet's channel attention as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import channel_affinity_attention


class ChannelAffinityAttention(Module):
    """DANet's channel attention, `flax_attn.vision.channel_affinity_attention`.

    Its only parameter is the number `gamma`, which starts at 0: the identity. Sows
    `attention_weights` `[*B, C, C]`.

    Args:
      param_dtype: dtype of the parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import nnx
      >>> nnx.ChannelAffinityAttention()(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(self, *, param_dtype: Dtype = jnp.float32):
        self.gamma = nnx.Param(jnp.zeros((), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Let the channels of an image `[*B, H, W, C]` attend to one another."""
        y, weights = channel_affinity_attention(x, self.gamma[...], return_weights=True)
        sow(self, "attention_weights", weights)
        return y
