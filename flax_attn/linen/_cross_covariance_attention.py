"""Cross-covariance attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import head_features
from flax_attn.linen._module import LayerModule
from flax_attn.vision import cross_covariance_attention


class CrossCovarianceAttention(LayerModule, kw_only=True):
    """Cross-covariance attention, `flax_attn.vision.cross_covariance_attention`.

    Parameters `query`, `key`, `value`, `out`, `temperature`. Sows `attention_weights`
    `[*B, N, D, D]`.

    Attributes:
      num_heads: N, of D = C // N channels each.
      use_bias: If True, queries, keys and values have biases; `out` always has one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.CrossCovarianceAttention(num_heads=4)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    num_heads: int = 8
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the channels of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        heads = (
            self.num_heads,
            head_features("CrossCovarianceAttention", features, self.num_heads),
        )
        ones = nn.initializers.ones_init()
        y, weights = cross_covariance_attention(
            x,
            self._heads(heads, "query", use_bias=self.use_bias),
            self._heads(heads, "key", use_bias=self.use_bias),
            self._heads(heads, "value", use_bias=self.use_bias),
            self._join(features, "out"),
            self.param("temperature", ones, (self.num_heads,), self.param_dtype),
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
