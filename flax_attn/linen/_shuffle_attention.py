"""Shuffle attention as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, group_features
from flax_attn.linen._module import Module
from flax_attn.vision import shuffle_attention_gate
from flax_attn.vision._shuffle_attention import channel_shuffle


class ShuffleAttention(Module, kw_only=True):
    """Shuffle attention, `flax_attn.vision.shuffle_attention`.

    Parameters `channel_scale`, `channel_bias`, `norm_scale`, `norm_bias`, `spatial_scale`,
    `spatial_bias`, `[C / (2 groups)]`. Sows `gate` `[*B, H, W, C]`, of the channels before they are
    shuffled.

    Attributes:
      groups: G, the number of groups of consecutive channels; 2 G divides C.
      param_dtype: dtype of the parameters.
      scale_init: Initializer of the scales of both gates; that of the normalisation starts at 1.
      bias_init: Initializer of the biases of both gates; that of the normalisation starts at 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 128))
      >>> linen.ShuffleAttention().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 128)
    """

    groups: int = 64
    epsilon: float = 1e-5
    gate_fn: Activation = jax.nn.sigmoid
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]` and shuffle its channels."""
        x = self._image(x)
        part = group_features("ShuffleAttention", x.shape[-1], self.groups, parts=2)

        def vector(name: str, initializer: Initializer) -> jax.Array:
            return self.param(name, initializer, (part,), self.param_dtype)

        gate = shuffle_attention_gate(
            x,
            vector("channel_scale", self.scale_init),
            vector("channel_bias", self.bias_init),
            vector("norm_scale", nn.initializers.ones),
            vector("norm_bias", nn.initializers.zeros),
            vector("spatial_scale", self.scale_init),
            vector("spatial_bias", self.bias_init),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return channel_shuffle(self._scale(x, gate))
