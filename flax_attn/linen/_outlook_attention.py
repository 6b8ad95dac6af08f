"""Outlook attention as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_odd, head_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import outlook_attention
from flax_attn.vision._checks import as_image


class OutlookAttention(Module, kw_only=True):
    """Outlook attention, `flax_attn.vision.outlook_attention`.

    Parameters `score`, `value`, `out`; sows `attention_weights` `[*B, H', W', N, k², k²]`.

    Attributes:
      num_heads: N, of D = C // N channels each; C / 32 in the paper.
      kernel_size: k, odd.
      stride: Distance of the windows; 2 in the paper.
      use_bias: Whether the values have a bias; the other maps have one.
      dtype: dtype of the maps, as in Flax; the softmax and the sums are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the neighbouring places of an image `[*B, H, W, C]`."""
        x = as_image("OutlookAttention", x)
        features = x.shape[-1]
        head_features("OutlookAttention", features, self.num_heads)
        size = check_odd("OutlookAttention", self.kernel_size)
        dense = functools.partial(
            Dense,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        y, weights = outlook_attention(
            x,
            dense(self.num_heads * size**4, name="score"),
            dense(features, use_bias=self.use_bias, name="value"),
            dense(features, name="out"),
            num_heads=self.num_heads,
            kernel_size=size,
            stride=self.stride,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
