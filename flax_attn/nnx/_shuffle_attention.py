"""Shuffle attention as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, group_features
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import shuffle_attention_gate
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._shuffle_attention import channel_shuffle


class ShuffleAttention(Module):
    """Shuffle attention, `flax_attn.vision.shuffle_attention`.

    Parameters `channel_scale`, `channel_bias`, `norm_scale`, `norm_bias`, `spatial_scale`,
    `spatial_bias`, `[C / (2 groups)]`; sows `gate` `[*B, H, W, C]`, of the channels before they are
    shuffled.

    Args:
      in_features: C.
      groups: G, the number of groups of consecutive channels; C is a multiple of 2 G.
      epsilon: ε, added to the variance.
      gate_fn: From the scaled statistics to the gates.
      param_dtype: dtype of the parameters.
      scale_init: Initializer of the two gates' scales; that of the normalisation starts at 1.
      bias_init: Initializer of the two gates' biases; that of the normalisation starts at 0.
      rngs: Keys for the parameters.

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
        part = group_features("ShuffleAttention", in_features, groups, parts=2)

        def vector(initializer: Initializer) -> nnx.Param[jax.Array]:
            return nnx.Param(initializer(rngs.params(), (part,), param_dtype))

        self.channel_scale, self.channel_bias = vector(scale_init), vector(bias_init)
        self.norm_scale = vector(nnx.initializers.ones)
        self.norm_bias = vector(nnx.initializers.zeros)
        self.spatial_scale, self.spatial_bias = vector(scale_init), vector(bias_init)
        self.epsilon = epsilon
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]` and shuffle its channels."""
        check_features("ShuffleAttention", x, self.in_features)
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
        sow(self, "gate", gate)
        return channel_shuffle(apply_gate(x, gate))
