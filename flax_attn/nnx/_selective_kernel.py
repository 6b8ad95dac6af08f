"""The selective kernel convolution as an NNX module."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import selective_kernel
from flax_attn.vision._selective_kernel import selective_kernel_sizes


class SelectiveKernel(Module):
    """A convolution that selects among kernels, `flax_attn.vision.selective_kernel`.

    Parameters `conv_0 ...`, `conv_norm_0 ...`, `reduce`, `reduce_norm`, `select`. Sows `gate`
    `[*B, P, 1, 1, C']`, the weight of each kernel for each channel.

    Args:
      in_features: C.
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
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        features, hidden, dilations = selective_kernel_sizes(
            in_features,
            out_features=out_features,
            kernel_size=kernel_size,
            dilations=dilations,
            strides=strides,
            groups=groups,
            reduction=reduction,
            min_features=min_features,
            hidden_features=hidden_features,
        )
        layers = self._layers(rngs, **layer_options)
        for i, dilation in enumerate(dilations):
            conv = layers.conv(
                in_features,
                features,
                kernel_size,
                use_bias=use_bias,
                strides=strides,
                dilation=dilation,
                groups=groups,
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"conv_norm_{i}", layers.norm(norm, features))
        self.reduce = layers.linear(features, hidden, use_bias=use_bias)
        self.reduce_norm = layers.norm(norm, hidden)
        self.select = layers.linear(hidden, len(dilations) * features, use_bias=use_bias)
        self.num_kernels = len(dilations)
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`."""
        self._check(x)
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
        self._sow("gate", gate)
        return y
