"""Efficient multi-scale attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import Activation, check_odd, group_features
from flax_attn.linen._module import LayerModule
from flax_attn.vision import efficient_multi_scale_attention_gate


class EfficientMultiScaleAttention(LayerModule, kw_only=True):
    """Efficient multi-scale attention, `flax_attn.vision.efficient_multi_scale_attention`.

    Parameters `pointwise`, `norm_scale`, `norm_bias`, `conv`, shared by all groups. Sows `gate`
    `[*B, H, W, C]`.

    Attributes:
      groups: Number of groups of consecutive channels. It divides C.
      kernel_size: Size of the spatial kernel, odd.
      use_bias: If True, both convolutions have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 64))
      >>> linen.EfficientMultiScaleAttention().init_with_output(jax.random.key(0), x)[0].shape
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
        x = self._image(x)
        part = group_features("EfficientMultiScaleAttention", x.shape[-1], self.groups)
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
