"""The lambda layer as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.vision import lambda_layer
from flax_attn.vision._lambda_layer import lambda_layer_features


class LambdaLayer(NormModule, kw_only=True):
    """The lambda layer, `flax_attn.vision.lambda_layer`.

    Parameters `query`, `query_norm`, `key`, `value`, `value_norm`, `position`.

    Attributes:
      num_heads: N; the values have C // N channels.
      key_features: K, the channels of the keys and of each head's queries.
      kernel_size: r, the size of the lambda convolution, odd.
      use_bias: If True, queries, keys and values have biases; the convolution always has one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> layer = linen.LambdaLayer(use_running_average=True)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    num_heads: int = 4
    key_features: int = 16
    kernel_size: int = 9
    use_bias: bool = False
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        x = self._image(x)
        value_features = lambda_layer_features(
            x.shape[-1], self.num_heads, self.key_features, self.kernel_size
        )
        norm = self._norm(use_running_average)
        return lambda_layer(
            x,
            self._dense(self.num_heads * self.key_features, "query", use_bias=self.use_bias),
            norm(name="query_norm"),
            self._dense(self.key_features, "key", use_bias=self.use_bias),
            self._dense(value_features, "value", use_bias=self.use_bias),
            norm(name="value_norm"),
            self._conv(self.key_features, self.kernel_size, "position"),
        )
