"""Large kernel attention as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, check_odd, check_positive
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import large_kernel_attention_gate
from flax_attn.vision._gates import apply_gate


class LargeKernelAttention(Module):
    """Large kernel attention, `flax_attn.vision.large_kernel_attention`.

    Parameters `local_conv`, `dilated_conv`, `project`; sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
      kernel_size: Width of the local kernel, odd.
      dilated_kernel_size: Width of the dilated kernel, odd.
      dilation: Spacing of its taps.
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
      >>> nnx.LargeKernelAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 5,
        dilated_kernel_size: int = 7,
        dilation: int = 3,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        local = check_odd("LargeKernelAttention", kernel_size)
        dilated = check_odd("LargeKernelAttention", dilated_kernel_size, "dilated_kernel_size")
        settings: dict[str, Any] = {
            "use_bias": use_bias,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        self.local_conv = Conv(
            in_features,
            in_features,
            (local, local),
            padding=local // 2,
            feature_group_count=in_features,
            conv_general_dilated=convolve,
            **settings,
        )
        self.dilated_conv = Conv(
            in_features,
            in_features,
            (dilated, dilated),
            kernel_dilation=check_positive("LargeKernelAttention", "dilation", dilation),
            padding=dilation * (dilated // 2),
            feature_group_count=in_features,
            conv_general_dilated=convolve,
            **settings,
        )
        self.project = Linear(in_features, in_features, **settings)
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        check_features("LargeKernelAttention", x, self.in_features)
        gate = large_kernel_attention_gate(x, self.local_conv, self.dilated_conv, self.project)
        sow(self, "gate", gate)
        return apply_gate(x, gate)
