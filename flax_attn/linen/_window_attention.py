"""Window attention as a Linen module."""

import jax
from flax import linen as nn
from flax.typing import Initializer

from flax_attn._checks import heads_of_32
from flax_attn.linen._module import LayerModule
from flax_attn.vision import window_attention
from flax_attn.vision._windows import Size, num_offsets


class WindowAttention(LayerModule, kw_only=True):
    """Window attention, `flax_attn.vision.window_attention`.

    Parameters `query`, `key`, `value`, `out`, and the table `relative_bias`.

    Attributes:
      num_heads: N, of D = C // N channels each; C // 32 by default, as in the paper.
      use_bias: If True, queries, keys and values have biases; `out` always has one.
      use_relative_bias: If True, each offset within a window has a learned bias.
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
    relative_bias_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within the windows of an image `[*B, H, W, C]`.

        With `sow_weights`, sows `attention_weights` `[*B, windows, N, M², M²]`.
        """
        x = self._image(x)
        features = x.shape[-1]
        heads = heads_of_32("WindowAttention", features, self.num_heads)
        table = None
        if self.use_relative_bias:
            shape = (num_offsets("WindowAttention", "window_size", self.window_size), heads[0])
            table = self.param("relative_bias", self.relative_bias_init, shape, self.param_dtype)
        return window_attention(
            x,
            self._heads(heads, "query", use_bias=self.use_bias),
            self._heads(heads, "key", use_bias=self.use_bias),
            self._heads(heads, "value", use_bias=self.use_bias),
            self._join(features, "out"),
            relative_bias=table,
            window_size=self.window_size,
            shift_size=self.shift_size,
            pad=self.pad,
            attention=self._attention(sow_weights),
        )
