"""Large selective kernels as a Linen module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd, dilated_kernels, reduced_features
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.vision import large_selective_kernel_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class LargeSelectiveKernel(Module, kw_only=True):
    """Large selective kernels, `flax_attn.vision.large_selective_kernel`.

    Parameters `conv_0 ...`, `reduce_0 ...`, `select`, `project`; sows `gate` `[*B, H, W, C]`.

    Attributes:
      kernel_sizes: Width of each of the P kernels, odd.
      dilations: Spacing of the taps of each.
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      select_kernel_size: Width of the kernel that selects, odd.
      use_bias: Whether the maps have biases.
      gate_fn: From what `select` returns to the masks.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> gate = linen.LargeSelectiveKernel()
      >>> gate.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_sizes: Sequence[int] = (5, 7)
    dilations: Sequence[int] = (1, 3)
    reduction: int = 2
    hidden_features: int | None = None
    select_kernel_size: int = 7
    use_bias: bool = True
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = as_image("LargeSelectiveKernel", x)
        features = x.shape[-1]
        hidden = reduced_features(
            "LargeSelectiveKernel", features, self.reduction, self.hidden_features
        )
        kernels = dilated_kernels("LargeSelectiveKernel", self.kernel_sizes, self.dilations)
        width = check_odd("LargeSelectiveKernel", self.select_kernel_size, "select_kernel_size")
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        gate = large_selective_kernel_gate(
            x,
            [
                Conv(
                    features,
                    (size, size),
                    kernel_dilation=dilation,
                    padding=dilation * (size // 2),
                    feature_group_count=features,
                    conv_general_dilated=convolve,
                    name=f"conv_{i}",
                    **settings,
                )
                for i, (size, dilation) in enumerate(kernels)
            ],
            [Dense(hidden, name=f"reduce_{i}", **settings) for i in range(len(kernels))],
            Conv(
                len(kernels),
                (width, width),
                padding=width // 2,
                conv_general_dilated=convolve,
                name="select",
                **settings,
            ),
            Dense(features, name="project", **settings),
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
