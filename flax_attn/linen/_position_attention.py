"""DANet's position attention as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import reduced_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import position_attention
from flax_attn.vision._checks import as_image


class PositionAttention(Module, kw_only=True):
    """DANet's position attention, `flax_attn.vision.position_attention`.

    Parameters `query`, `key`, `value`, and the number `gamma`, which starts at 0: the identity.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax; scores and weights are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Let the places of an image `[*B, H, W, C]` attend to one another.

        Args:
          x: The image.
          sow_weights: Whether to sow `attention_weights` `[*B, H·W, H·W]` into "intermediates".

        Returns:
          The image `[*B, H, W, C]`.
        """
        x = as_image("PositionAttention", x)
        features = x.shape[-1]
        hidden = reduced_features(
            "PositionAttention", features, self.reduction, self.hidden_features
        )
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        attend = functools.partial(
            position_attention,
            x,
            dense(hidden, name="query"),
            dense(hidden, name="key"),
            dense(features, name="value"),
            self.param("gamma", nn.initializers.zeros_init(), (), self.param_dtype),
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        self.sow("intermediates", "attention_weights", weights)
        return y
