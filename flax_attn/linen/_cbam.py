"""CBAM as a Linen module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation
from flax_attn.linen._channel_attention import ChannelAttention
from flax_attn.linen._module import Module
from flax_attn.linen._spatial_attention import SpatialAttention
from flax_attn.vision._spatial_attention import Pooling


class CBAM(Module, kw_only=True):
    """CBAM, `flax_attn.vision.cbam`: channel attention, then spatial attention.

    Submodules `channel` and `spatial`, each with its own parameters and gate.

    Attributes:
      reduction: R = C // reduction; the paper's is 16.
      hidden_features: R, if not by the reduction.
      kernel_size: Width of the spatial kernel, odd; the paper's is 7.
      use_bias: Whether the perceptron has biases, as in the paper's released models.
      norm: Makes the normalisation of the spatial map; None for none.
      order: Which of the two pooled maps is which: `("max", "mean")` for the released weights.
      activation_fn: Inside the perceptron.
      gate_fn: Of both gates.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels, then the places of an image `[*B, H, W, C]`."""
        x = ChannelAttention(
            reduction=self.reduction,
            hidden_features=self.hidden_features,
            use_bias=self.use_bias,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="channel",
        )(x)
        return SpatialAttention(
            kernel_size=self.kernel_size,
            norm=self.norm,
            order=self.order,
            gate_fn=self.gate_fn,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            name="spatial",
        )(x)
