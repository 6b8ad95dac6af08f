"""Efficient multi-scale attention as a Linen module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd, group_features
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.vision import efficient_multi_scale_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class EfficientMultiScaleAttention(Module, kw_only=True):
    """Efficient multi-scale attention, `flax_attn.vision.efficient_multi_scale_attention`.

    Parameters `pointwise`, `norm_scale`, `norm_bias`, `conv`, shared by all groups; sows `gate`
    `[*B, H, W, C]`.

    Attributes:
      groups: Number of groups of consecutive channels, of which C is a multiple.
      kernel_size: Width of the spatial kernel, odd.
      use_bias: Whether the two convolutions have biases.
      epsilon: ε of the normalisation, added to the variance.
      gate_fn: σ.
      dtype: dtype of the convolutions, as in Flax; the pooled statistics and the normalisation are
        float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        x = as_image("EfficientMultiScaleAttention", x)
        part = group_features("EfficientMultiScaleAttention", x.shape[-1], self.groups)
        size = check_odd("EfficientMultiScaleAttention", self.kernel_size)
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        gate = efficient_multi_scale_attention_gate(
            x,
            Dense(part, **settings, name="pointwise"),
            self.param("norm_scale", nn.initializers.ones, (part,), self.param_dtype),
            self.param("norm_bias", nn.initializers.zeros, (part,), self.param_dtype),
            Conv(part, (size, size), padding=size // 2, **settings, name="conv"),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
