"""Bottleneck attention as a Linen module."""

import jax
from flax import linen as nn
from flax.typing import Initializer

from flax_attn._checks import head_features
from flax_attn.linen._module import LayerModule
from flax_attn.vision import bottleneck_attention


class BottleneckAttention(LayerModule, kw_only=True):
    """Bottleneck attention, `flax_attn.vision.bottleneck_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height` `[2 H − 1, D]` and
    `relative_width` `[2 W − 1, D]`: all images must have the same size.

    Attributes:
      num_heads: N, of D = C // N channels each.
      use_bias: If True, queries, keys and values have biases.
      position_init: Initializer of the tables; variance 1 / D by default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.BottleneckAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 32)))[0].shape
      (2, 8, 8, 32)
    """

    num_heads: int = 4
    scale_positions: bool = True
    use_bias: bool = False
    position_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within `[*B, H, W, C]`; may sow `attention_weights` `[*B, N, H·W, H·W]`."""
        x = self._image(x)
        height, width, features = x.shape[-3:]
        head_dim = head_features("BottleneckAttention", features, self.num_heads)
        heads = (self.num_heads, head_dim)

        def table(name: str, size: int) -> jax.Array:
            shape = (2 * size - 1, head_dim)
            return self.param(name, self.position_init, shape, self.param_dtype)

        return bottleneck_attention(
            x,
            self._heads(heads, "query", use_bias=self.use_bias),
            self._heads(heads, "key", use_bias=self.use_bias),
            self._heads(heads, "value", use_bias=self.use_bias),
            table("relative_height", height),
            table("relative_width", width),
            scale_positions=self.scale_positions,
            attention=self._attention(sow_weights),
        )
