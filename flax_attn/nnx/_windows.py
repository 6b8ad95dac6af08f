"""Attention with positions: within windows, grids, blocks or whole images, as NNX modules."""

from typing import Unpack

import jax
from flax import nnx
from flax.typing import Initializer

from flax_attn._checks import head_features, heads_of_32
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import bottleneck_attention, grid_attention, halo_attention, window_attention
from flax_attn.vision._halo_attention import halo_attention_sizes
from flax_attn.vision._windows import Size, as_pair, num_offsets


class WindowAttention(Module):
    """Window attention, `flax_attn.vision.window_attention`.

    Parameters `query`, `key`, `value`, `out`, and the table `relative_bias`.

    Args:
      num_heads: N, of D = C // N channels each; C // 32 by default, as in the paper.
      use_bias: If True, queries, keys and values have biases; `out` always has one.
      use_relative_bias: If True, each offset within a window has a learned bias.
      relative_bias_init: Initializer of the table.

    Example:
      >>> nnx.WindowAttention(64, window_size=4, shift_size=2, rngs=rngs)(x).shape
      (2, 8, 8, 64)
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
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        heads = heads_of_32("WindowAttention", in_features, num_heads)
        self.query = layers.general(in_features, heads)
        self.key = layers.general(in_features, heads)
        self.value = layers.general(in_features, heads)
        self.out = layers.general(heads, in_features, axis=(-2, -1), use_bias=True)
        if use_relative_bias:
            rows = num_offsets("WindowAttention", "window_size", window_size)
            self.relative_bias = layers.param(relative_bias_init, rows, heads[0])
        self.window_size = window_size
        self.shift_size = shift_size
        self.pad = pad
        self.use_relative_bias = use_relative_bias

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within windows; may sow `attention_weights` `[*B, windows, N, M², M²]`."""
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


class GridAttention(Module):
    """Grid attention, `flax_attn.vision.grid_attention`.

    Parameters `query`, `key`, `value`, `out`, and the table `relative_bias`.

    Args:
      num_heads: N, of D = C // N channels each; C // 32 by default, as in the paper.
      use_bias: If True, queries, keys and values have biases; `out` always has one.
      use_relative_bias: If True, each offset within a grid has a learned bias.
      relative_bias_init: Initializer of the table.

    Example:
      >>> nnx.GridAttention(64, grid_size=4, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int | None = None,
        grid_size: Size = 7,
        use_bias: bool = True,
        use_relative_bias: bool = True,
        relative_bias_init: Initializer = nnx.initializers.normal(0.02),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        heads = heads_of_32("GridAttention", in_features, num_heads)
        self.query = layers.general(in_features, heads)
        self.key = layers.general(in_features, heads)
        self.value = layers.general(in_features, heads)
        self.out = layers.general(heads, in_features, axis=(-2, -1), use_bias=True)
        if use_relative_bias:
            rows = num_offsets("GridAttention", "grid_size", grid_size)
            self.relative_bias = layers.param(relative_bias_init, rows, heads[0])
        self.grid_size, self.use_relative_bias = grid_size, use_relative_bias

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within grids; may sow `attention_weights` `[*B, grids, N, G², G²]`."""
        self._check(x)
        return grid_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            relative_bias=self.relative_bias[...] if self.use_relative_bias else None,
            grid_size=self.grid_size,
            attention=self._attention(sow_weights),
        )


class HaloAttention(Module):
    """Halo attention, `flax_attn.vision.halo_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height`, `relative_width`
    `[2 w − 1, D]`, where w = block_size + 2 halo_size.

    Args:
      use_bias: If True, queries, keys and values have biases.
      position_init: Initializer of the tables; variance 1 / D by default.

    Example:
      >>> nnx.HaloAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
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
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        head_dim, window = halo_attention_sizes(in_features, num_heads, block_size, halo_size)
        heads = (num_heads, head_dim)
        self.query = layers.general(in_features, heads)
        self.key = layers.general(in_features, heads)
        self.value = layers.general(in_features, heads)
        self.relative_height = layers.param(position_init, 2 * window - 1, head_dim)
        self.relative_width = layers.param(position_init, 2 * window - 1, head_dim)
        self.block_size = block_size
        self.halo_size = halo_size
        self.scale_positions = scale_positions
        self.mask_padding = mask_padding

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from blocks; may sow `attention_weights` `[*B, blocks, N, block_size², w²]`."""
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


class BottleneckAttention(Module):
    """Bottleneck attention, `flax_attn.vision.bottleneck_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height` `[2 H − 1, D]` and
    `relative_width` `[2 W − 1, D]`.

    Args:
      input_size: (H, W), which all images must have.
      use_bias: If True, queries, keys and values have biases.
      position_init: Initializer of the tables; variance 1 / D by default.

    Example:
      >>> nnx.BottleneckAttention(64, (8, 8), rngs=rngs)(x).shape
      (2, 8, 8, 64)
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
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        height, width = as_pair("BottleneckAttention", "input_size", input_size, 1)
        head_dim = head_features("BottleneckAttention", in_features, num_heads)
        heads = (num_heads, head_dim)
        self.query = layers.general(in_features, heads)
        self.key = layers.general(in_features, heads)
        self.value = layers.general(in_features, heads)
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
