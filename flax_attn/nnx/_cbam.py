"""CBAM as an NNX module."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._channel_attention import ChannelAttention
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._spatial_attention import SpatialAttention
from flax_attn.vision._spatial_attention import Pooling


class CBAM(Module):
    """CBAM, `flax_attn.vision.cbam`: channel attention, then spatial attention.

    Submodules `channel` and `spatial`, each with its own parameters and gate.

    Args:
      in_features: C.
      reduction: R = C // reduction; 16 in the paper.
      hidden_features: Explicit R; overrides `reduction`.
      kernel_size: Size of the spatial kernel, odd; 7 in the paper.
      use_bias: If True, the perceptron has biases, as in the released models of the paper.
      norm: Makes the normalisation of the spatial map; None for none.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.CBAM(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        kernel_size: int = 3,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        order: Sequence[Pooling] = ("mean", "max"),
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        self.channel = ChannelAttention(
            in_features,
            reduction=reduction,
            hidden_features=hidden_features,
            use_bias=use_bias,
            activation_fn=activation_fn,
            gate_fn=gate_fn,
            rngs=rngs,
            **layer_options,
        )
        self.spatial = SpatialAttention(
            in_features,
            kernel_size=kernel_size,
            norm=norm,
            order=order,
            gate_fn=gate_fn,
            rngs=rngs,
            **layer_options,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels, then the places of an image `[*B, H, W, C]`."""
        return self.spatial(self.channel(x))
