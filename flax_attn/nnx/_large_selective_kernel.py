"""Large selective kernels as an NNX module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import (
    Activation,
    check_features,
    check_odd,
    dilated_kernels,
    reduced_features,
)
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import large_selective_kernel_gate
from flax_attn.vision._gates import apply_gate


class LargeSelectiveKernel(Module):
    """Large selective kernels, `flax_attn.vision.large_selective_kernel`.

    Parameters `conv_0 ...`, `reduce_0 ...`, `select`, `project`; sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
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
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.LargeSelectiveKernel(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_sizes: Sequence[int] = (5, 7),
        dilations: Sequence[int] = (1, 3),
        reduction: int = 2,
        hidden_features: int | None = None,
        select_kernel_size: int = 7,
        use_bias: bool = True,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("LargeSelectiveKernel", in_features, reduction, hidden_features)
        kernels = dilated_kernels("LargeSelectiveKernel", kernel_sizes, dilations)
        width = check_odd("LargeSelectiveKernel", select_kernel_size, "select_kernel_size")
        settings: dict[str, Any] = {
            "use_bias": use_bias,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        for i, (size, dilation) in enumerate(kernels):
            conv = Conv(
                in_features,
                in_features,
                (size, size),
                kernel_dilation=dilation,
                padding=dilation * (size // 2),
                feature_group_count=in_features,
                conv_general_dilated=convolve,
                **settings,
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"reduce_{i}", Linear(in_features, hidden, **settings))
        self.select = Conv(
            2,
            len(kernels),
            (width, width),
            padding=width // 2,
            conv_general_dilated=convolve,
            **settings,
        )
        self.project = Linear(hidden, in_features, **settings)
        self.num_kernels = len(kernels)
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        check_features("LargeSelectiveKernel", x, self.in_features)
        gate = large_selective_kernel_gate(
            x,
            [getattr(self, f"conv_{i}") for i in range(self.num_kernels)],
            [getattr(self, f"reduce_{i}") for i in range(self.num_kernels)],
            self.select,
            self.project,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
