"""Bottleneck attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx
from flax.typing import Initializer

from flax_attn._checks import head_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import bottleneck_attention
from flax_attn.vision._windows import as_pair


class BottleneckAttention(Module):
    """Bottleneck attention, `flax_attn.vision.bottleneck_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height` `[2 H − 1, D]` and
    `relative_width` `[2 W − 1, D]`.

    Args:
      in_features: C.
      input_size: (H, W), which all images must have.
      num_heads: N, of D = C // N channels each.
      use_bias: If True, queries, keys and values have biases.
      position_init: Initializer of the tables; variance 1 / D by default.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.BottleneckAttention(32, (8, 8), rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 8, 8, 32))).shape
      (2, 8, 8, 32)
    """

    def __init__(
        self,
        in_features: int,
        input_size: tuple[int, int],
        *,
        num_heads: int = 4,
        scale_positions: bool = True,
        use_bias: bool = False,
        position_init: Initializer = nnx.initializers.variance_scaling(1.0, "fan_out", "normal"),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        height, width = as_pair("BottleneckAttention", "input_size", input_size, 1)
        head_dim = head_features("BottleneckAttention", in_features, num_heads)
        heads = (num_heads, head_dim)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.heads(in_features, heads, use_bias=use_bias)
        self.key = layers.heads(in_features, heads, use_bias=use_bias)
        self.value = layers.heads(in_features, heads, use_bias=use_bias)
        self.relative_height = layers.param(position_init, 2 * height - 1, head_dim)
        self.relative_width = layers.param(position_init, 2 * width - 1, head_dim)
        self.scale_positions = scale_positions

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within `[*B, H, W, C]`; may sow `attention_weights` `[*B, N, H·W, H·W]`."""
        self._check(x)
        return bottleneck_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.relative_height[...],
            self.relative_width[...],
            scale_positions=self.scale_positions,
            attention=self._attention(sow_weights),
        )
