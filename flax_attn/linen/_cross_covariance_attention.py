"""Cross-covariance attention as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import head_features
from flax_attn.linen._layers import DenseGeneral
from flax_attn.linen._module import Module
from flax_attn.vision import cross_covariance_attention
from flax_attn.vision._checks import as_image


class CrossCovarianceAttention(Module, kw_only=True):
    """Cross-covariance attention, `flax_attn.vision.cross_covariance_attention`.

    Parameters `query`, `key`, `value`, `out`, `temperature`; sows `attention_weights`
    `[*B, N, D, D]`.

    Attributes:
      num_heads: N, of D = C // N channels each.
      use_bias: Whether the queries, keys and values have biases; `out` has one.
      dtype: dtype of the maps, as in Flax; lengths and the softmax are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.CrossCovarianceAttention(num_heads=4)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    num_heads: int = 8
    use_bias: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the channels of an image `[*B, H, W, C]`."""
        x = as_image("CrossCovarianceAttention", x)
        features = x.shape[-1]
        head_dim = head_features("CrossCovarianceAttention", features, self.num_heads)
        dense = functools.partial(
            DenseGeneral,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        heads = functools.partial(dense, (self.num_heads, head_dim), use_bias=self.use_bias)
        ones = nn.initializers.ones_init()
        y, weights = cross_covariance_attention(
            x,
            heads(name="query"),
            heads(name="key"),
            heads(name="value"),
            dense(features, axis=(-2, -1), name="out"),
            self.param("temperature", ones, (self.num_heads,), self.param_dtype),
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
