"""Window attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import heads_of_32
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.linen._layers import DenseGeneral
from flax_attn.linen._module import Module
from flax_attn.vision import window_attention
from flax_attn.vision._checks import as_image
from flax_attn.vision._windows import Size, num_offsets


class WindowAttention(Module, kw_only=True):
    """Window attention, `flax_attn.vision.window_attention`.

    Parameters `query`, `key`, `value`, `out`, and the table `relative_bias`.

    Attributes:
      num_heads: N, of D = C // N channels each; default C // 32, the paper's heads of 32 channels.
      window_size: M, one number or (height, width).
      shift_size: How far the windows are shifted, ⌊M / 2⌋ in every other block of Swin.
      pad: Whether to pad images of which M does not divide the size; otherwise they raise.
      use_bias: Whether the queries, keys and values have biases; `out` has one.
      use_relative_bias: Whether each offset within a window has a bias.
      dtype: dtype of the maps, as in Flax; the softmax is float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      relative_bias_init: Initializer of the table.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.WindowAttention(shift_size=3)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 14, 14, 64)))[0].shape
      (2, 14, 14, 64)
    """

    num_heads: int | None = None
    window_size: Size = 7
    shift_size: Size = 0
    pad: bool = False
    use_bias: bool = True
    use_relative_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    relative_bias_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within the windows of an image `[*B, H, W, C]`.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, windows, N, M², M²]` into
            "intermediates".

        Returns:
          The image `[*B, H, W, C]`.
        """
        x = as_image("WindowAttention", x)
        features = x.shape[-1]
        num_heads, head_dim = heads_of_32("WindowAttention", features, self.num_heads)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        heads = functools.partial(
            DenseGeneral, (num_heads, head_dim), use_bias=self.use_bias, **settings
        )
        table = None
        if self.use_relative_bias:
            shape = (num_offsets("WindowAttention", "window_size", self.window_size), num_heads)
            table = self.param("relative_bias", self.relative_bias_init, shape, self.param_dtype)
        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(self.sow, "intermediates"))
        return window_attention(
            x,
            heads(name="query"),
            heads(name="key"),
            heads(name="value"),
            DenseGeneral(features, axis=(-2, -1), name="out", **settings),
            relative_bias=table,
            window_size=self.window_size,
            shift_size=self.shift_size,
            pad=self.pad,
            attention=attention,
        )
