"""Large separable kernel attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.vision import separable_kernel_sizes, separable_large_kernel_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class SeparableLargeKernelAttention(Module, kw_only=True):
    """Large kernel attention by strips, `flax_attn.vision.separable_large_kernel_attention`.

    Parameters `local_row`, `local_column`, `dilated_row`, `dilated_column`, `project`; sows `gate`
    `[*B, H, W, C]`.

    Attributes:
      kernel_size: Reach of the strips together: 7, 11, 23, 35, 41 or 53.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> gate = linen.SeparableLargeKernelAttention()
      >>> gate.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 23
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = as_image("SeparableLargeKernelAttention", x)
        features = x.shape[-1]
        local, dilated, dilation = separable_kernel_sizes(self.kernel_size)
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        strip = functools.partial(
            Conv,
            features,
            feature_group_count=features,
            conv_general_dilated=convolve,
            **settings,
        )
        reach = dilation * (dilated // 2)
        gate = separable_large_kernel_attention_gate(
            x,
            strip(kernel_size=(1, local), padding=(0, local // 2), name="local_row"),
            strip(kernel_size=(local, 1), padding=(local // 2, 0), name="local_column"),
            strip(
                kernel_size=(1, dilated),
                kernel_dilation=dilation,
                padding=(0, reach),
                name="dilated_row",
            ),
            strip(
                kernel_size=(dilated, 1),
                kernel_dilation=dilation,
                padding=(reach, 0),
                name="dilated_column",
            ),
            Dense(features, name="project", **settings),
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
