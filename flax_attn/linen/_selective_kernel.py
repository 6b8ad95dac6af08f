"""Selective kernels as a Linen module."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import (
    Activation,
    check_dilations,
    check_multiple,
    check_odd,
    check_positive,
    output_features,
    reduced_features,
)
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import BatchNorm, with_phase
from flax_attn.vision import selective_kernel
from flax_attn.vision._checks import as_image


class SelectiveKernel(Module, kw_only=True):
    """A convolution that chooses between kernels, `flax_attn.vision.selective_kernel`.

    Parameters `conv_0 ...`, `conv_norm_0 ...`, `reduce`, `reduce_norm`, `select`; sows `gate`
    `[*B, P, 1, 1, C']`, what each channel takes of each kernel.

    Attributes:
      out_features: C', default C.
      kernel_size: Width of the kernels, odd.
      dilations: Spacing of the taps of each of the P kernels.
      strides: Step of the convolutions.
      groups: Channel groups of the convolutions.
      reduction: R = max(min_features, C' // reduction).
      min_features: The least R by the reduction.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the maps have biases.
      norm: Makes each normalisation; by default batch normalisation with PyTorch's momentum and an
        exact variance. One of your own may know its phase:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      activation_fn: After each normalisation.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> conv = linen.SelectiveKernel(out_features=64, strides=2, use_running_average=True)
      >>> conv.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 32)))[0].shape
      (2, 4, 4, 64)
    """

    out_features: int | None = None
    kernel_size: int = 3
    dilations: Sequence[int] = (1, 2)
    strides: int = 1
    groups: int = 32
    reduction: int = 16
    min_features: int = 32
    hidden_features: int | None = None
    use_bias: bool = False
    norm: Any = BatchNorm
    use_running_average: bool | None = None
    activation_fn: Activation = jax.nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`. The phase is given here or before."""
        x = as_image("SelectiveKernel", x)
        features = output_features("SelectiveKernel", x.shape[-1], self.out_features)
        check_multiple("SelectiveKernel", "C", x.shape[-1], "groups", self.groups)
        check_multiple("SelectiveKernel", "out_features", features, "groups", self.groups)
        hidden = reduced_features(
            "SelectiveKernel",
            features,
            self.reduction,
            self.hidden_features,
            least=self.min_features,
        )
        size = check_odd("SelectiveKernel", self.kernel_size)
        dilations = check_dilations("SelectiveKernel", self.dilations)
        check_positive("SelectiveKernel", "strides", self.strides)
        norm = with_phase(
            "SelectiveKernel", self.norm, self.use_running_average, use_running_average
        )
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        dense = functools.partial(Dense, **settings)
        y, gate = selective_kernel(
            x,
            [
                Conv(
                    features,
                    (size, size),
                    strides=self.strides,
                    kernel_dilation=dilation,
                    padding=dilation * (size // 2),
                    feature_group_count=self.groups,
                    conv_general_dilated=convolve,
                    name=f"conv_{i}",
                    **settings,
                )
                for i, dilation in enumerate(dilations)
            ],
            [norm(name=f"conv_norm_{i}") for i in range(len(dilations))],
            dense(features=hidden, name="reduce"),
            norm(name="reduce_norm"),
            dense(features=len(dilations) * features, name="select"),
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        self.sow("intermediates", "gate", gate)
        return y
