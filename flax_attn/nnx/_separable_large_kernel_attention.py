"""Large separable kernel attention as an NNX module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import separable_kernel_sizes, separable_large_kernel_attention_gate
from flax_attn.vision._gates import apply_gate


class SeparableLargeKernelAttention(Module):
    """Large kernel attention by strips, `flax_attn.vision.separable_large_kernel_attention`.

    Parameters `local_row`, `local_column`, `dilated_row`, `dilated_column`, `project`; sows `gate`
    `[*B, H, W, C]`.

    Args:
      in_features: C.
      kernel_size: Reach of the strips together: 7, 11, 23, 35, 41 or 53.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> gate = nnx.SeparableLargeKernelAttention(16, rngs=flax_nnx.Rngs(0))
      >>> gate(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 23,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        local, dilated, dilation = separable_kernel_sizes(kernel_size)
        settings: dict[str, Any] = {
            "use_bias": use_bias,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        strip = functools.partial(
            Conv,
            in_features,
            in_features,
            feature_group_count=in_features,
            conv_general_dilated=convolve,
            **settings,
        )
        reach = dilation * (dilated // 2)
        self.local_row = strip(kernel_size=(1, local), padding=(0, local // 2))
        self.local_column = strip(kernel_size=(local, 1), padding=(local // 2, 0))
        self.dilated_row = strip(
            kernel_size=(1, dilated), kernel_dilation=dilation, padding=(0, reach)
        )
        self.dilated_column = strip(
            kernel_size=(dilated, 1), kernel_dilation=dilation, padding=(reach, 0)
        )
        self.project = Linear(in_features, in_features, **settings)
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        check_features("SeparableLargeKernelAttention", x, self.in_features)
        gate = separable_large_kernel_attention_gate(
            x,
            self.local_row,
            self.local_column,
            self.dilated_row,
            self.dilated_column,
            self.project,
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
