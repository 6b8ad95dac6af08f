"""Window attention as an NNX module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, heads_of_32
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.nnx._layers import LinearGeneral
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow_on_request
from flax_attn.vision import window_attention
from flax_attn.vision._windows import Size, num_offsets


class WindowAttention(Module):
    """Window attention, `flax_attn.vision.window_attention`.

    Parameters `query`, `key`, `value`, `out`, and the table `relative_bias`.

    Args:
      in_features: C.
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
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.WindowAttention(64, shift_size=3, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 14, 14, 64))).shape
      (2, 14, 14, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int | None = None,
        window_size: Size = 7,
        shift_size: Size = 0,
        pad: bool = False,
        use_bias: bool = True,
        use_relative_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        relative_bias_init: Initializer = nnx.initializers.normal(0.02),
        rngs: nnx.Rngs,
    ):
        num_heads, head_dim = heads_of_32("WindowAttention", in_features, num_heads)
        settings: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        heads = functools.partial(
            LinearGeneral, in_features, (num_heads, head_dim), use_bias=use_bias, **settings
        )
        self.query = heads()
        self.key = heads()
        self.value = heads()
        self.out = LinearGeneral((num_heads, head_dim), in_features, axis=(-2, -1), **settings)
        if use_relative_bias:
            shape = (num_offsets("WindowAttention", "window_size", window_size), num_heads)
            table = relative_bias_init(rngs.params(), shape, param_dtype)
            self.relative_bias = nnx.Param(table)
        self.in_features = in_features
        self.window_size = window_size
        self.shift_size = shift_size
        self.pad = pad
        self.use_relative_bias = use_relative_bias

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within the windows of an image `[*B, H, W, C]`.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, windows, N, M², M²]` as
            `nnx.Intermediate`; raises outside `nnx.capture`.

        Returns:
          The image `[*B, H, W, C]`.
        """
        check_features("WindowAttention", x, self.in_features)
        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(sow_on_request, self))
        return window_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            relative_bias=self.relative_bias[...] if self.use_relative_bias else None,
            window_size=self.window_size,
            shift_size=self.shift_size,
            pad=self.pad,
            attention=attention,
        )
