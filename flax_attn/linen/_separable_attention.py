"""Separable self-attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.vision import separable_attention


class SeparableAttention(LayerModule, kw_only=True):
    """Separable self-attention, `flax_attn.vision.separable_attention`.

    Parameters `score`, `key`, `value`, `out`. Sows `attention_weights` `[*B, H, W, 1]`.

    Attributes:
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.SeparableAttention(patch_size=2)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 8, 6, 16)))[0].shape
      (2, 8, 6, 16)
    """

    patch_size: int = 1
    use_bias: bool = True
    activation_fn: Activation = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        y, weights = separable_attention(
            x,
            self._dense(1, "score", use_bias=self.use_bias),
            self._dense(features, "key", use_bias=self.use_bias),
            self._dense(features, "value", use_bias=self.use_bias),
            self._dense(features, "out", use_bias=self.use_bias),
            patch_size=self.patch_size,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
