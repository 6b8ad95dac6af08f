"""External attention as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, check_positive
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision import external_attention


class ExternalAttention(Module):
    """External attention, `flax_attn.vision.external_attention`.

    Parameters `query`, `key`, `value`, `out`, `norm`, of which only `query` may have a bias; sows
    `attention_weights` `[*B, H, W, S]`. `value` starts on its own, not as the transpose of `key`.

    Args:
      in_features: C.
      memory_size: S, the number of slots.
      use_bias: Whether `query` has a bias.
      norm: Makes the normalisation, called as `norm(C, rngs=rngs)`.
      activation_fn: After the sum.
      dtype: dtype of the maps, as in Flax; the weights are float32, and `norm` has a dtype of its
        own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the bias.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.ExternalAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        memory_size: int = 64,
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        check_positive("ExternalAttention", "memory_size", memory_size)
        linear = functools.partial(
            Linear,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.query = linear(in_features, in_features, use_bias=use_bias)
        self.key = linear(in_features, memory_size, use_bias=False)
        self.value = linear(memory_size, in_features, use_bias=False)
        self.out = linear(in_features, in_features, use_bias=False)
        self.norm = norm(in_features, rngs=rngs)
        self.activation_fn = activation_fn
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Let an image `[*B, H, W, C]` attend to the memory."""
        check_features("ExternalAttention", x, self.in_features)
        y, weights = external_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            norm=self.norm,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        sow(self, "attention_weights", weights)
        return y
