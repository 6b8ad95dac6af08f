"""DANet's position attention as a Linen module."""

import functools

import jax
from flax import linen as nn

from flax_attn._checks import reduced_features
from flax_attn.linen._module import LayerModule
from flax_attn.vision import position_attention


class PositionAttention(LayerModule, kw_only=True):
    """DANet's position attention, `flax_attn.vision.position_attention`.

    Parameters `query`, `key`, `value`, and the number `gamma`, which starts at 0, so that the
    module starts as the identity.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.PositionAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 8
    hidden_features: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within `[*B, H, W, C]`; may sow `attention_weights` `[*B, H·W, H·W]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = reduced_features(
            "PositionAttention", features, self.reduction, self.hidden_features
        )
        attend = functools.partial(
            position_attention,
            x,
            self._dense(hidden, "query", use_bias=self.use_bias),
            self._dense(hidden, "key", use_bias=self.use_bias),
            self._dense(features, "value", use_bias=self.use_bias),
            self.param("gamma", nn.initializers.zeros_init(), (), self.param_dtype),
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        self.sow("intermediates", "attention_weights", weights)
        return y
