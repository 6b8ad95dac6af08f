"""Gates of groups of channels, as NNX modules."""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd, group_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import (
    efficient_multi_scale_attention_gate,
    shuffle_attention_gate,
    spatial_group_enhance_gate,
)
from flax_attn.vision._shuffle_attention import channel_shuffle


class SpatialGroupEnhance(Module):
    """Spatial group-wise enhancement, `flax_attn.vision.spatial_group_enhance`.

    Parameters `scale` and `bias` `[groups]`. Sows `gate` `[*B, H, W, C]`.

    Args:
      groups: G, the number of groups of consecutive channels. It divides C.
      scale_init: Initializer of the scale.
      bias_init: Initializer of the bias.

    Example:
      >>> nnx.SpatialGroupEnhance(64, rngs=rngs)(jnp.ones((2, 7, 7, 64))).shape
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
        super().__init__(in_features)
        group_features("SpatialGroupEnhance", in_features, groups)
        layers = self._layers(rngs, param_dtype=param_dtype)
        self.scale = layers.param(scale_init, groups)
        self.bias = layers.param(bias_init, groups)
        self.epsilon = epsilon
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = spatial_group_enhance_gate(
            x, self.scale[...], self.bias[...], epsilon=self.epsilon, gate_fn=self.gate_fn
        )
        return self._scale(x, gate)


class ShuffleAttention(Module):
    """Shuffle attention, `flax_attn.vision.shuffle_attention`.

    Parameters `channel_scale`, `channel_bias`, `norm_scale`, `norm_bias`, `spatial_scale`,
    `spatial_bias`, `[C / (2 groups)]`. Sows `gate` `[*B, H, W, C]`, of the channels before they are
    shuffled.

    Args:
      groups: G, the number of groups of consecutive channels; 2 G divides C.
      scale_init: Initializer of the scales of both gates; that of the normalisation starts at 1.
      bias_init: Initializer of the biases of both gates; that of the normalisation starts at 0.

    Example:
      >>> nnx.ShuffleAttention(128, rngs=rngs)(jnp.ones((2, 7, 7, 128))).shape
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


class EfficientMultiScaleAttention(Module):
    """Efficient multi-scale attention, `flax_attn.vision.efficient_multi_scale_attention`.

    Parameters `pointwise`, `norm_scale`, `norm_bias`, `conv`, shared by all groups. Sows `gate`
    `[*B, H, W, C]`.

    Args:
      groups: Number of groups of consecutive channels. It divides C.
      use_bias: If True, both convolutions have biases.

    Example:
      >>> nnx.EfficientMultiScaleAttention(64, rngs=rngs)(jnp.ones((2, 7, 7, 64))).shape
      (2, 7, 7, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        groups: int = 32,
        kernel_size: int = 3,
        use_bias: bool = True,
        epsilon: float = 1e-5,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        part = group_features("EfficientMultiScaleAttention", in_features, groups)
        size = check_odd("EfficientMultiScaleAttention", kernel_size)
        layers = self._layers(rngs, **layer_options)
        self.pointwise = layers.linear(part, part, use_bias=use_bias)
        self.norm_scale = layers.constant(1, part)
        self.norm_bias = layers.constant(0, part)
        self.conv = layers.conv(part, part, size, use_bias=use_bias)
        self.epsilon = epsilon
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = efficient_multi_scale_attention_gate(
            x,
            self.pointwise,
            self.norm_scale[...],
            self.norm_bias[...],
            self.conv,
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
