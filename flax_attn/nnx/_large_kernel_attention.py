"""Large kernel attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import large_kernel_attention_gate
from flax_attn.vision._large_kernel_attention import check_large_kernel_attention


class LargeKernelAttention(Module):
    """Large kernel attention, `flax_attn.vision.large_kernel_attention`.

    Parameters `local_conv`, `dilated_conv`, `project`. Sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
      kernel_size: Size of the local kernel, odd.
      dilated_kernel_size: Size of the dilated kernel, odd.
      dilation: Its dilation.
      use_bias: If True, the layers have biases.

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
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        check_large_kernel_attention(kernel_size, dilated_kernel_size, dilation)
        features = in_features
        layers = self._layers(rngs, **layer_options)
        self.local_conv = layers.conv(
            features, features, kernel_size, use_bias=use_bias, groups=features
        )
        self.dilated_conv = layers.conv(
            features,
            features,
            dilated_kernel_size,
            use_bias=use_bias,
            dilation=dilation,
            groups=features,
        )
        self.project = layers.linear(features, features, use_bias=use_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = large_kernel_attention_gate(x, self.local_conv, self.dilated_conv, self.project)
        return self._scale(x, gate)
