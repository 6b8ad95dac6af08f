"""CBAM as an NNX module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation
from flax_attn.nnx._channel_attention import ChannelAttention
from flax_attn.nnx._module import Module
from flax_attn.nnx._spatial_attention import SpatialAttention
from flax_attn.vision._spatial_attention import Pooling


class CBAM(Module):
    """CBAM, `flax_attn.vision.cbam`: channel attention, then spatial attention.

    Submodules `channel` and `spatial`, each with its own parameters and gate.

    Args:
      in_features: C.
      reduction: R = C // reduction; the paper's is 16.
      hidden_features: R, if not by the reduction.
      kernel_size: Width of the spatial kernel, odd; the paper's is 7.
      use_bias: Whether the perceptron has biases, as in the paper's released models.
      norm: Makes the normalisation of the spatial map, called as `norm(1, rngs=rngs)`; None for
        none.
      order: Which of the two pooled maps is which: `("max", "mean")` for the released weights.
      activation_fn: Inside the perceptron.
      gate_fn: Of both gates.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

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
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        self.channel = ChannelAttention(
            in_features,
            reduction=reduction,
            hidden_features=hidden_features,
            use_bias=use_bias,
            activation_fn=activation_fn,
            gate_fn=gate_fn,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.spatial = SpatialAttention(
            kernel_size=kernel_size,
            norm=norm,
            order=order,
            gate_fn=gate_fn,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels, then the places of an image `[*B, H, W, C]`."""
        return self.spatial(self.channel(x))
