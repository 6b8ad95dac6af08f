"""Shuffle attention as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, group_features
from flax_attn.nnx._module import Module
from flax_attn.vision import shuffle_attention_gate
from flax_attn.vision._shuffle_attention import channel_shuffle


class ShuffleAttention(Module):
    """Shuffle attention, `flax_attn.vision.shuffle_attention`.

    Parameters `channel_scale`, `channel_bias`, `norm_scale`, `norm_bias`, `spatial_scale`,
    `spatial_bias`, `[C / (2 groups)]`. Sows `gate` `[*B, H, W, C]`, of the channels before they are
    shuffled.

    Args:
      in_features: C.
      groups: G, the number of groups of consecutive channels; 2 G divides C.
      param_dtype: dtype of the parameters.
      scale_init: Initializer of the scales of both gates; that of the normalisation starts at 1.
      bias_init: Initializer of the biases of both gates; that of the normalisation starts at 0.
      rngs: Keys of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.ShuffleAttention(128, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 128))).shape
      (2, 7, 7, 128)
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
        part = group_features("ShuffleAttention", in_features, groups, parts=2)
        layers = self._layers(rngs, param_dtype=param_dtype)
        self.channel_scale = layers.param(scale_init, part)
        self.channel_bias = layers.param(bias_init, part)
        self.norm_scale = layers.param(nnx.initializers.ones, part)
        self.norm_bias = layers.param(nnx.initializers.zeros, part)
        self.spatial_scale = layers.param(scale_init, part)
        self.spatial_bias = layers.param(bias_init, part)
        self.epsilon = epsilon
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]` and shuffle its channels."""
        self._check(x)
        gate = shuffle_attention_gate(
            x,
            self.channel_scale[...],
            self.channel_bias[...],
            self.norm_scale[...],
            self.norm_bias[...],
            self.spatial_scale[...],
            self.spatial_bias[...],
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return channel_shuffle(self._scale(x, gate))
