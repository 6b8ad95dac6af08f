"""Selective kernels as an NNX module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import (
    Activation,
    check_dilations,
    check_features,
    check_multiple,
    check_odd,
    check_positive,
    output_features,
    reduced_features,
)
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision import selective_kernel


class SelectiveKernel(Module):
    """A convolution that chooses between kernels, `flax_attn.vision.selective_kernel`.

    Parameters `conv_0 ...`, `conv_norm_0 ...`, `reduce`, `reduce_norm`, `select`; sows `gate`
    `[*B, P, 1, 1, C']`, what each channel takes of each kernel.

    Args:
      in_features: C.
      out_features: C', default C.
      kernel_size: Width of the kernels, odd.
      dilations: Spacing of the taps of each of the P kernels.
      strides: Step of the convolutions.
      groups: Channel groups of the convolutions.
      reduction: R = max(min_features, C' // reduction).
      min_features: The least R by the reduction.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the maps have biases.
      norm: Makes each normalisation, called as `norm(C', rngs=rngs)`.
      activation_fn: After each normalisation.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> conv = nnx.SelectiveKernel(32, out_features=64, strides=2, rngs=flax_nnx.Rngs(0))
      >>> conv(jnp.ones((2, 8, 8, 32))).shape
      (2, 4, 4, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        out_features: int | None = None,
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 2),
        strides: int = 1,
        groups: int = 32,
        reduction: int = 16,
        min_features: int = 32,
        hidden_features: int | None = None,
        use_bias: bool = False,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        features = output_features("SelectiveKernel", in_features, out_features)
        check_multiple("SelectiveKernel", "C", in_features, "groups", groups)
        check_multiple("SelectiveKernel", "out_features", features, "groups", groups)
        hidden = reduced_features(
            "SelectiveKernel", features, reduction, hidden_features, least=min_features
        )
        size = check_odd("SelectiveKernel", kernel_size)
        dilations = check_dilations("SelectiveKernel", dilations)
        check_positive("SelectiveKernel", "strides", strides)
        settings: dict[str, Any] = {
            "use_bias": use_bias,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        for i, dilation in enumerate(dilations):
            conv = Conv(
                in_features,
                features,
                (size, size),
                strides=strides,
                kernel_dilation=dilation,
                padding=dilation * (size // 2),
                feature_group_count=groups,
                conv_general_dilated=convolve,
                **settings,
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"conv_norm_{i}", norm(features, rngs=rngs))
        self.reduce = Linear(features, hidden, **settings)
        self.reduce_norm = norm(hidden, rngs=rngs)
        self.select = Linear(hidden, len(dilations) * features, **settings)
        self.num_kernels = len(dilations)
        self.in_features = in_features
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`."""
        check_features("SelectiveKernel", x, self.in_features)
        y, gate = selective_kernel(
            x,
            [getattr(self, f"conv_{i}") for i in range(self.num_kernels)],
            [getattr(self, f"conv_norm_{i}") for i in range(self.num_kernels)],
            self.reduce,
            self.reduce_norm,
            self.select,
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        sow(self, "gate", gate)
        return y
