"""Large selective kernels as an NNX module."""

from collections.abc import Sequence
from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import large_selective_kernel_gate
from flax_attn.vision._large_selective_kernel import large_selective_kernel_sizes


class LargeSelectiveKernel(Module):
    """Large selective kernels, `flax_attn.vision.large_selective_kernel`.

    Parameters `conv_0 ...`, `reduce_0 ...`, `select`, `project`. Sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
      kernel_sizes: Size of each of the P kernels, odd.
      dilations: Dilation of each kernel.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      select_kernel_size: Size of the kernel of `select`, odd.
      use_bias: If True, the layers have biases.

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
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden, kernels = large_selective_kernel_sizes(
            in_features, reduction, hidden_features, kernel_sizes, dilations, select_kernel_size
        )
        layers = self._layers(rngs, **layer_options)
        for i, (size, dilation) in enumerate(kernels):
            conv = layers.conv(
                in_features,
                in_features,
                size,
                use_bias=use_bias,
                dilation=dilation,
                groups=in_features,
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"reduce_{i}", layers.linear(in_features, hidden, use_bias=use_bias))
        self.select = layers.conv(2, len(kernels), select_kernel_size, use_bias=use_bias)
        self.project = layers.linear(hidden, in_features, use_bias=use_bias)
        self.num_kernels = len(kernels)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = large_selective_kernel_gate(
            x,
            [getattr(self, f"conv_{i}") for i in range(self.num_kernels)],
            [getattr(self, f"reduce_{i}") for i in range(self.num_kernels)],
            self.select,
            self.project,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
