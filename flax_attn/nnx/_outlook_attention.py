"""Outlook attention as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, check_odd, head_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import outlook_attention


class OutlookAttention(Module):
    """Outlook attention, `flax_attn.vision.outlook_attention`.

    Parameters `score`, `value`, `out`; sows `attention_weights` `[*B, H', W', N, k², k²]`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each; C / 32 in the paper.
      kernel_size: k, odd.
      stride: Distance of the windows; 2 in the paper.
      use_bias: Whether the values have a bias; the other maps have one.
      dtype: dtype of the maps, as in Flax; the softmax and the sums are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.OutlookAttention(16, num_heads=4, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        kernel_size: int = 3,
        stride: int = 1,
        use_bias: bool = False,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        head_features("OutlookAttention", in_features, num_heads)
        size = check_odd("OutlookAttention", kernel_size)
        linear = functools.partial(
            Linear,
            in_features,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.score = linear(num_heads * size**4)
        self.value = linear(in_features, use_bias=use_bias)
        self.out = linear(in_features)
        self.in_features = in_features
        self.num_heads = num_heads
        self.kernel_size = size
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the neighbouring places of an image `[*B, H, W, C]`."""
        check_features("OutlookAttention", x, self.in_features)
        y, weights = outlook_attention(
            x,
            self.score,
            self.value,
            self.out,
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            return_weights=True,
        )
        sow(self, "attention_weights", weights)
        return y
