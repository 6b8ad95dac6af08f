"""Gates of groups of channels, as Linen modules."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd, group_features
from flax_attn.linen._module import LayerModule, Module
from flax_attn.vision import (
    efficient_multi_scale_attention_gate,
    shuffle_attention_gate,
    spatial_group_enhance_gate,
)
from flax_attn.vision._shuffle_attention import channel_shuffle


class SpatialGroupEnhance(Module, kw_only=True):
    """Spatial group-wise enhancement; see `flax_attn.nnx.SpatialGroupEnhance`.

    Example:
      >>> linen.SpatialGroupEnhance().init_with_output(key, jnp.ones((2, 7, 7, 64)))[0].shape
      (2, 7, 7, 64)
    """

    groups: int = 64
    epsilon: float = 1e-5
    gate_fn: Activation = jax.nn.sigmoid
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        x, features = self._image(x)
        group_features("SpatialGroupEnhance", features, self.groups)
        gate = spatial_group_enhance_gate(
            x,
            self.param("scale", self.scale_init, (self.groups,), self.param_dtype),
            self.param("bias", self.bias_init, (self.groups,), self.param_dtype),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class ShuffleAttention(Module, kw_only=True):
    """Shuffle attention; see `flax_attn.nnx.ShuffleAttention`.

    Example:
      >>> linen.ShuffleAttention().init_with_output(key, jnp.ones((2, 7, 7, 128)))[0].shape
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
        x, features = self._image(x)
        part = group_features("ShuffleAttention", features, self.groups, parts=2)

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


class EfficientMultiScaleAttention(LayerModule, kw_only=True):
    """Efficient multi-scale attention; see `flax_attn.nnx.EfficientMultiScaleAttention`.

    Example:
      >>> x = jnp.ones((2, 7, 7, 64))
      >>> linen.EfficientMultiScaleAttention().init_with_output(key, x)[0].shape
      (2, 7, 7, 64)
    """

    groups: int = 32
    kernel_size: int = 3
    use_bias: bool = True
    epsilon: float = 1e-5
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        x, features = self._image(x)
        part = group_features("EfficientMultiScaleAttention", features, self.groups)
        size = check_odd("EfficientMultiScaleAttention", self.kernel_size)
        gate = efficient_multi_scale_attention_gate(
            x,
            self._dense(part, "pointwise", use_bias=self.use_bias),
            self.param("norm_scale", nn.initializers.ones, (part,), self.param_dtype),
            self.param("norm_bias", nn.initializers.zeros, (part,), self.param_dtype),
            self._conv(part, size, "conv", use_bias=self.use_bias),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
