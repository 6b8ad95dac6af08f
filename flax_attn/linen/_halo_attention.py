"""Halo attention as a Linen module."""

import jax
from flax import linen as nn
from flax.typing import Initializer

from flax_attn.linen._module import LayerModule
from flax_attn.vision import halo_attention
from flax_attn.vision._halo_attention import halo_attention_sizes


class HaloAttention(LayerModule, kw_only=True):
    """Halo attention, `flax_attn.vision.halo_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height`, `relative_width`
    `[2 w − 1, D]`, where w = block_size + 2 halo_size.

    Attributes:
      num_heads: N, of D = C // N channels each.
      use_bias: If True, queries, keys and values have biases.
      position_init: Initializer of the tables; variance 1 / D by default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.HaloAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 32)))[0].shape
      (2, 8, 8, 32)
    """

    num_heads: int = 8
    block_size: int = 8
    halo_size: int = 3
    scale_positions: bool = True
    mask_padding: bool = False
    use_bias: bool = False
    position_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each block of an image `[*B, H, W, C]` to its surroundings.

        With `sow_weights`, sows `attention_weights` `[*B, blocks, N, block_size², w²]`.
        """
        x = self._image(x)
        head_dim, window = halo_attention_sizes(
            x.shape[-1], self.num_heads, self.block_size, self.halo_size
        )
        heads, shape = (self.num_heads, head_dim), (2 * window - 1, head_dim)
        return halo_attention(
            x,
            self._heads(heads, "query", use_bias=self.use_bias),
            self._heads(heads, "key", use_bias=self.use_bias),
            self._heads(heads, "value", use_bias=self.use_bias),
            self.param("relative_height", self.position_init, shape, self.param_dtype),
            self.param("relative_width", self.position_init, shape, self.param_dtype),
            block_size=self.block_size,
            halo_size=self.halo_size,
            scale_positions=self.scale_positions,
            mask_padding=self.mask_padding,
            attention=self._attention(sow_weights),
        )
