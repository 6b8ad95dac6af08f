"""The selective kernel convolution as a Linen module."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.vision import selective_kernel
from flax_attn.vision._selective_kernel import selective_kernel_sizes


class SelectiveKernel(NormModule, kw_only=True):
    """A convolution that selects among kernels, `flax_attn.vision.selective_kernel`.

    Parameters `conv_0 ...`, `conv_norm_0 ...`, `reduce`, `reduce_norm`, `select`. Sows `gate`
    `[*B, P, 1, 1, C']`, the weight of each kernel for each channel.

    Attributes:
      out_features: C'; C by default.
      kernel_size: Size of the kernels, odd.
      dilations: Dilation of each of the P kernels.
      strides: Strides of the convolutions.
      groups: Channel groups of the convolutions.
      reduction: R = max(min_features, C' // reduction).
      min_features: The smallest R that `reduction` gives.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

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
    activation_fn: Activation = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`."""
        x = self._image(x)
        features, hidden, dilations = selective_kernel_sizes(
            x.shape[-1],
            out_features=self.out_features,
            kernel_size=self.kernel_size,
            dilations=self.dilations,
            strides=self.strides,
            groups=self.groups,
            reduction=self.reduction,
            min_features=self.min_features,
            hidden_features=self.hidden_features,
        )
        norm = self._norm(use_running_average)
        convs = [
            self._conv(
                features,
                self.kernel_size,
                f"conv_{i}",
                use_bias=self.use_bias,
                strides=self.strides,
                dilation=dilation,
                groups=self.groups,
            )
            for i, dilation in enumerate(dilations)
        ]
        y, gate = selective_kernel(
            x,
            convs,
            [norm(name=f"conv_norm_{i}") for i in range(len(dilations))],
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            norm(name="reduce_norm"),
            self._dense(len(dilations) * features, "select", use_bias=self.use_bias),
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        self.sow("intermediates", "gate", gate)
        return y
