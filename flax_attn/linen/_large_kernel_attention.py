"""Large kernel attention as a Linen module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_odd, check_positive
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.vision import large_kernel_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class LargeKernelAttention(Module, kw_only=True):
    """Large kernel attention, `flax_attn.vision.large_kernel_attention`.

    Parameters `local_conv`, `dilated_conv`, `project`; sows `gate` `[*B, H, W, C]`.

    Attributes:
      kernel_size: Width of the local kernel, odd.
      dilated_kernel_size: Width of the dilated kernel, odd.
      dilation: Spacing of its taps.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> gate = linen.LargeKernelAttention()
      >>> gate.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 5
    dilated_kernel_size: int = 7
    dilation: int = 3
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = as_image("LargeKernelAttention", x)
        features = x.shape[-1]
        local = check_odd("LargeKernelAttention", self.kernel_size)
        dilated = check_odd("LargeKernelAttention", self.dilated_kernel_size, "dilated_kernel_size")
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        gate = large_kernel_attention_gate(
            x,
            Conv(
                features,
                (local, local),
                padding=local // 2,
                feature_group_count=features,
                conv_general_dilated=convolve,
                name="local_conv",
                **settings,
            ),
            Conv(
                features,
                (dilated, dilated),
                kernel_dilation=check_positive("LargeKernelAttention", "dilation", self.dilation),
                padding=self.dilation * (dilated // 2),
                feature_group_count=features,
                conv_general_dilated=convolve,
                name="dilated_conv",
                **settings,
            ),
            Dense(features, name="project", **settings),
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
