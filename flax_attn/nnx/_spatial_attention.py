"""Spatial attention as an NNX module."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, check_odd
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import spatial_attention_gate
from flax_attn.vision._spatial_attention import Pooling


class SpatialAttention(Module):
    """Spatial attention, `flax_attn.vision.spatial_attention`.

    Parameters `conv`, and `norm` if there is one. Sows `gate` `[*B, H, W, 1]`.

    Args:
      in_features: C; any number of channels if it is left out.
      kernel_size: Size of the kernel, odd; 7 in the paper.
      use_bias: If True, the convolution has a bias.
      norm: Makes the normalisation after the convolution, for example `nnx.BatchNorm`; None for
        none.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.SpatialAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        kernel_size: int = 3,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        order: Sequence[Pooling] = ("mean", "max"),
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        size = check_odd("SpatialAttention", kernel_size)
        layers = self._layers(rngs, **layer_options)
        self.conv = layers.conv(2, 1, size, use_bias=use_bias)
        self.norm = layers.norm(norm, 1)
        self.order = tuple(order)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = spatial_attention_gate(
            x, self.conv, norm=self.norm, order=self.order, gate_fn=self.gate_fn
        )
        return self._scale(x, gate)
