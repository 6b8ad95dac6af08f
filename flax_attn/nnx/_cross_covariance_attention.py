"""Cross-covariance attention as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, head_features
from flax_attn.nnx._layers import LinearGeneral
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import cross_covariance_attention


class CrossCovarianceAttention(Module):
    """Cross-covariance attention, `flax_attn.vision.cross_covariance_attention`.

    Parameters `query`, `key`, `value`, `out`, `temperature`; sows `attention_weights`
    `[*B, N, D, D]`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each.
      use_bias: Whether the queries, keys and values have biases; `out` has one.
      dtype: dtype of the maps, as in Flax; lengths and the softmax are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.CrossCovarianceAttention(16, num_heads=4, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        use_bias: bool = False,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        head_dim = head_features("CrossCovarianceAttention", in_features, num_heads)
        heads = (num_heads, head_dim)
        linear = functools.partial(
            LinearGeneral,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.query = linear(in_features, heads, use_bias=use_bias)
        self.key = linear(in_features, heads, use_bias=use_bias)
        self.value = linear(in_features, heads, use_bias=use_bias)
        self.out = linear(heads, in_features, axis=(-2, -1))
        self.temperature = nnx.Param(jnp.ones((num_heads,), param_dtype))
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the channels of an image `[*B, H, W, C]`."""
        check_features("CrossCovarianceAttention", x, self.in_features)
        y, weights = cross_covariance_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            self.temperature[...],
            return_weights=True,
        )
        sow(self, "attention_weights", weights)
        return y
