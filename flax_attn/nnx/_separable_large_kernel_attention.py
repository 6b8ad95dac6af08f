"""Separable large kernel attention as an NNX module."""

import functools
from typing import Unpack

import jax
from flax import nnx

from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import separable_kernel_sizes, separable_large_kernel_attention_gate


class SeparableLargeKernelAttention(Module):
    """Large kernel attention by strips, `flax_attn.vision.separable_large_kernel_attention`.

    Parameters `local_row`, `local_column`, `dilated_row`, `dilated_column`, `project`. Sows `gate`
    `[*B, H, W, C]`.

    Args:
      in_features: C.
      kernel_size: Size of the kernel that the strips replace: 7, 11, 23, 35, 41 or 53.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.SeparableLargeKernelAttention(16, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 23,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        local, dilated, dilation = separable_kernel_sizes(kernel_size)
        layers = self._layers(rngs, **layer_options)
        strip = functools.partial(
            layers.conv, in_features, in_features, use_bias=use_bias, groups=in_features
        )
        self.local_row = strip((1, local))
        self.local_column = strip((local, 1))
        self.dilated_row = strip((1, dilated), dilation=dilation)
        self.dilated_column = strip((dilated, 1), dilation=dilation)
        self.project = layers.linear(in_features, in_features, use_bias=use_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = separable_large_kernel_attention_gate(
            x,
            self.local_row,
            self.local_column,
            self.dilated_row,
            self.dilated_column,
            self.project,
        )
        return self._scale(x, gate)
