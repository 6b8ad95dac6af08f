"""Window attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx
from flax.typing import Initializer

from flax_attn._checks import heads_of_32
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import window_attention
from flax_attn.vision._windows import Size, num_offsets


class WindowAttention(Module):
    """Window attention, `flax_attn.vision.window_attention`.

    Parameters `query`, `key`, `value`, `out`, and the table `relative_bias`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each; C // 32 by default, as in the paper.
      use_bias: If True, queries, keys and values have biases; `out` always has one.
      use_relative_bias: If True, each offset within a window has a learned bias.
      relative_bias_init: Initializer of the table.

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
        relative_bias_init: Initializer = nnx.initializers.normal(0.02),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        heads = heads_of_32("WindowAttention", in_features, num_heads)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.heads(in_features, heads, use_bias=use_bias)
        self.key = layers.heads(in_features, heads, use_bias=use_bias)
        self.value = layers.heads(in_features, heads, use_bias=use_bias)
        self.out = layers.join(heads, in_features)
        if use_relative_bias:
            rows = num_offsets("WindowAttention", "window_size", window_size)
            self.relative_bias = layers.param(relative_bias_init, rows, heads[0])
        self.window_size = window_size
        self.shift_size = shift_size
        self.pad = pad
        self.use_relative_bias = use_relative_bias

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within the windows of an image `[*B, H, W, C]`.

        With `sow_weights`, sows `attention_weights` `[*B, windows, N, M², M²]`.
        """
        self._check(x)
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
            attention=self._attention(sow_weights),
        )
