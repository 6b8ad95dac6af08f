"""Separable self-attention as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import separable_attention
from flax_attn.vision._checks import as_image


class SeparableAttention(Module, kw_only=True):
    """Separable self-attention, `flax_attn.vision.separable_attention`.

    Parameters `score`, `key`, `value`, `out`; sows `attention_weights` `[*B, H, W, 1]`.

    Attributes:
      patch_size: Width of the patches; 2 in MobileViT v2, where the places with one position in
        their patch attend to each other.
      use_bias: Whether the maps have biases.
      activation_fn: Of the values.
      dtype: dtype of the maps, as in Flax; the softmax and the context are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        x = as_image("SeparableAttention", x)
        features = x.shape[-1]
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        y, weights = separable_attention(
            x,
            dense(1, name="score"),
            dense(features, name="key"),
            dense(features, name="value"),
            dense(features, name="out"),
            patch_size=self.patch_size,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
