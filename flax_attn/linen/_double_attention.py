"""Double attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn.linen._module import LayerModule
from flax_attn.vision import double_attention
from flax_attn.vision._double_attention import double_attention_features


class DoubleAttention(LayerModule, kw_only=True):
    """Double attention, `flax_attn.vision.double_attention`.

    Parameters `value`, `gather`, `distribute`, `out`. Sows `attention_weights`, the pair of
    gathering and distributing weights, each `[*B, H, W, S]`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      num_descriptors: S; R by default.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.DoubleAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 4
    hidden_features: int | None = None
    num_descriptors: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Gather and distribute the features of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden, descriptors = double_attention_features(
            features, self.reduction, self.hidden_features, self.num_descriptors
        )
        y, weights = double_attention(
            x,
            self._dense(hidden, "value", use_bias=self.use_bias),
            self._dense(descriptors, "gather", use_bias=self.use_bias),
            self._dense(descriptors, "distribute", use_bias=self.use_bias),
            self._dense(features, "out", use_bias=self.use_bias),
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
