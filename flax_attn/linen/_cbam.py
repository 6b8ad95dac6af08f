"""CBAM as a Linen module."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._channel_attention import ChannelAttention
from flax_attn.linen._module import LayerModule
from flax_attn.linen._spatial_attention import SpatialAttention
from flax_attn.vision._spatial_attention import Pooling


class CBAM(LayerModule, kw_only=True):
    """CBAM, `flax_attn.vision.cbam`: channel attention, then spatial attention.

    Submodules `channel` and `spatial`, each with its own parameters and gate.

    Attributes:
      reduction: R = C // reduction; 16 in the paper.
      hidden_features: Explicit R; overrides `reduction`.
      kernel_size: Size of the spatial kernel, odd; 7 in the paper.
      use_bias: If True, the perceptron has biases, as in the released models of the paper.
      norm: Makes the normalisation of the spatial map; None for none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.CBAM().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 4
    hidden_features: int | None = None
    kernel_size: int = 3
    use_bias: bool = False
    norm: Any = None
    order: Sequence[Pooling] = ("mean", "max")
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels, then the places of an image `[*B, H, W, C]`."""
        x = ChannelAttention(
            reduction=self.reduction,
            hidden_features=self.hidden_features,
            use_bias=self.use_bias,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
            name="channel",
            **self._layer_options,
        )(x)
        return SpatialAttention(
            kernel_size=self.kernel_size,
            norm=self.norm,
            order=self.order,
            gate_fn=self.gate_fn,
            name="spatial",
            **self._layer_options,
        )(x)
