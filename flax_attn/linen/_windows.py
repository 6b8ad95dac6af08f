"""Attention with positions: within windows, grids, blocks or whole images, as Linen modules."""

import jax
from flax import linen as nn
from flax.typing import Initializer

from flax_attn._checks import head_features, heads_of_32
from flax_attn.linen._module import LayerModule
from flax_attn.vision import bottleneck_attention, grid_attention, halo_attention, window_attention
from flax_attn.vision._halo_attention import halo_attention_sizes
from flax_attn.vision._windows import Size, num_offsets


class WindowAttention(LayerModule, kw_only=True):
    """Window attention; see `flax_attn.nnx.WindowAttention`.

    Example:
      >>> linen.WindowAttention(window_size=4, shift_size=2).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
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
        x, features = self._image(x)
        heads = heads_of_32("WindowAttention", features, self.num_heads)
        table = None
        if self.use_relative_bias:
            shape = (num_offsets("WindowAttention", "window_size", self.window_size), heads[0])
            table = self.param("relative_bias", self.relative_bias_init, shape, self.param_dtype)
        return window_attention(
            x,
            self._general(heads, "query"),
            self._general(heads, "key"),
            self._general(heads, "value"),
            self._general(features, "out", axis=(-2, -1), use_bias=True),
            relative_bias=table,
            window_size=self.window_size,
            shift_size=self.shift_size,
            pad=self.pad,
            attention=self._attention(sow_weights),
        )


class GridAttention(LayerModule, kw_only=True):
    """Grid attention; see `flax_attn.nnx.GridAttention`.

    Example:
      >>> linen.GridAttention(grid_size=4).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    num_heads: int | None = None
    grid_size: Size = 7
    use_bias: bool = True
    use_relative_bias: bool = True
    relative_bias_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        x, features = self._image(x)
        heads = heads_of_32("GridAttention", features, self.num_heads)
        table = None
        if self.use_relative_bias:
            shape = (num_offsets("GridAttention", "grid_size", self.grid_size), heads[0])
            table = self.param("relative_bias", self.relative_bias_init, shape, self.param_dtype)
        return grid_attention(
            x,
            self._general(heads, "query"),
            self._general(heads, "key"),
            self._general(heads, "value"),
            self._general(features, "out", axis=(-2, -1), use_bias=True),
            relative_bias=table,
            grid_size=self.grid_size,
            attention=self._attention(sow_weights),
        )


class HaloAttention(LayerModule, kw_only=True):
    """Halo attention; see `flax_attn.nnx.HaloAttention`.

    Example:
      >>> linen.HaloAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
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
        x, features = self._image(x)
        head_dim, window = halo_attention_sizes(
            features, self.num_heads, self.block_size, self.halo_size
        )
        heads, shape = (self.num_heads, head_dim), (2 * window - 1, head_dim)
        return halo_attention(
            x,
            self._general(heads, "query"),
            self._general(heads, "key"),
            self._general(heads, "value"),
            self.param("relative_height", self.position_init, shape, self.param_dtype),
            self.param("relative_width", self.position_init, shape, self.param_dtype),
            block_size=self.block_size,
            halo_size=self.halo_size,
            scale_positions=self.scale_positions,
            mask_padding=self.mask_padding,
            attention=self._attention(sow_weights),
        )


class BottleneckAttention(LayerModule, kw_only=True):
    """Bottleneck attention; see `flax_attn.nnx.BottleneckAttention`.

    Example:
      >>> linen.BottleneckAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    num_heads: int = 4
    scale_positions: bool = True
    use_bias: bool = False
    position_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        x, features = self._image(x)
        height, width = x.shape[-3:-1]
        head_dim = head_features("BottleneckAttention", features, self.num_heads)
        heads = (self.num_heads, head_dim)

        def table(name: str, size: int) -> jax.Array:
            shape = (2 * size - 1, head_dim)
            return self.param(name, self.position_init, shape, self.param_dtype)

        return bottleneck_attention(
            x,
            self._general(heads, "query"),
            self._general(heads, "key"),
            self._general(heads, "value"),
            table("relative_height", height),
            table("relative_width", width),
            scale_positions=self.scale_positions,
            attention=self._attention(sow_weights),
        )
