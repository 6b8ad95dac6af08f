"""Shuffle attention as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, group_features
from flax_attn.linen._module import Module
from flax_attn.vision import shuffle_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._shuffle_attention import channel_shuffle


class ShuffleAttention(Module, kw_only=True):
    """Shuffle attention, `flax_attn.vision.shuffle_attention`.

    Parameters `channel_scale`, `channel_bias`, `norm_scale`, `norm_bias`, `spatial_scale`,
    `spatial_bias`, `[C / (2 groups)]`; sows `gate` `[*B, H, W, C]`, of the channels before they are
    shuffled.

    Attributes:
      groups: G, the number of groups of consecutive channels; C is a multiple of 2 G.
      epsilon: ε, added to the variance.
      gate_fn: From the scaled statistics to the gates.
      param_dtype: dtype of the parameters.
      scale_init: Initializer of the two gates' scales; that of the normalisation starts at 1.
      bias_init: Initializer of the two gates' biases; that of the normalisation starts at 0.

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
        x = as_image("ShuffleAttention", x)
        part = group_features("ShuffleAttention", x.shape[-1], self.groups, parts=2)
        initializers = {
            "channel_scale": self.scale_init,
            "channel_bias": self.bias_init,
            "norm_scale": nn.initializers.ones,
            "norm_bias": nn.initializers.zeros,
            "spatial_scale": self.scale_init,
            "spatial_bias": self.bias_init,
        }
        vectors = {
            name: self.param(name, init, (part,), self.param_dtype)
            for name, init in initializers.items()
        }
        gate = shuffle_attention_gate(x, **vectors, epsilon=self.epsilon, gate_fn=self.gate_fn)
        self.sow("intermediates", "gate", gate)
        return channel_shuffle(apply_gate(x, gate))
