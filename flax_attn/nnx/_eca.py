"""Efficient channel attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import eca_gate
from flax_attn.vision._eca import as_kernel_size


class ECA(Module):
    """Efficient channel attention, `flax_attn.vision.eca`.

    Parameter `conv`, without a bias. Sows `gate` `[*B, 1, 1, C]`.

    Args:
      in_features: C.
      kernel_size: k, odd; `eca_kernel_size(C)` of the paper by default.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.ECA(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int | None = None,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        size = as_kernel_size(in_features, kernel_size)
        self.conv = self._layers(rngs, **layer_options).conv(1, 1, (size,), use_bias=False)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        return self._scale(x, eca_gate(x, self.conv, gate_fn=self.gate_fn))
