"""Halo attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx
from flax.typing import Initializer

from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import halo_attention
from flax_attn.vision._halo_attention import halo_attention_sizes


class HaloAttention(Module):
    """Halo attention, `flax_attn.vision.halo_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height`, `relative_width`
    `[2 w − 1, D]`, where w = block_size + 2 halo_size.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each.
      use_bias: If True, queries, keys and values have biases.
      position_init: Initializer of the tables; variance 1 / D by default.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.HaloAttention(32, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 8, 8, 32))).shape
      (2, 8, 8, 32)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        scale_positions: bool = True,
        mask_padding: bool = False,
        use_bias: bool = False,
        position_init: Initializer = nnx.initializers.variance_scaling(1.0, "fan_out", "normal"),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        head_dim, window = halo_attention_sizes(in_features, num_heads, block_size, halo_size)
        heads = (num_heads, head_dim)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.heads(in_features, heads, use_bias=use_bias)
        self.key = layers.heads(in_features, heads, use_bias=use_bias)
        self.value = layers.heads(in_features, heads, use_bias=use_bias)
        self.relative_height = layers.param(position_init, 2 * window - 1, head_dim)
        self.relative_width = layers.param(position_init, 2 * window - 1, head_dim)
        self.block_size = block_size
        self.halo_size = halo_size
        self.scale_positions = scale_positions
        self.mask_padding = mask_padding

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each block of an image `[*B, H, W, C]` to its surroundings.

        With `sow_weights`, sows `attention_weights` `[*B, blocks, N, block_size², w²]`.
        """
        self._check(x)
        return halo_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.relative_height[...],
            self.relative_width[...],
            block_size=self.block_size,
            halo_size=self.halo_size,
            scale_positions=self.scale_positions,
            mask_padding=self.mask_padding,
            attention=self._attention(sow_weights),
        )
