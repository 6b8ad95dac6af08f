"""Outlook attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn.linen._module import LayerModule
from flax_attn.vision import outlook_attention
from flax_attn.vision._outlook_attention import num_scores


class OutlookAttention(LayerModule, kw_only=True):
    """Outlook attention, `flax_attn.vision.outlook_attention`.

    Parameters `score`, `value`, `out`. Sows `attention_weights` `[*B, H', W', N, k², k²]`.

    Attributes:
      num_heads: N, of D = C // N channels each; C / 32 in the paper.
      use_bias: If True, the values have a bias; the other layers always have one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.OutlookAttention(num_heads=4)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    num_heads: int = 8
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the neighbouring places of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        y, weights = outlook_attention(
            x,
            self._dense(num_scores(features, self.num_heads, self.kernel_size), "score"),
            self._dense(features, "value", use_bias=self.use_bias),
            self._dense(features, "out"),
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
