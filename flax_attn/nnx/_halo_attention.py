"""Halo attention as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_at_least, check_features, check_positive, head_features
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.nnx._layers import LinearGeneral
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow_on_request
from flax_attn.vision import halo_attention


class HaloAttention(Module):
    """Halo attention, `flax_attn.vision.halo_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height`, `relative_width`
    `[2 w − 1, D]`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each.
      block_size: b, the width of the blocks of queries.
      halo_size: How far a block sees beyond its border; w = b + 2 halo_size.
      scale_positions: Whether the position terms are scaled by 1/√D; timm's default does not.
      mask_padding: Whether places outside of the image are hidden.
      use_bias: Whether the queries, keys and values have biases.
      dtype: dtype of the maps, as in Flax; the softmax is float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      position_init: Initializer of the tables; a variance of 1/D by default.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.HaloAttention(32, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 8, 8, 32))).shape
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
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        position_init: Initializer = nnx.initializers.variance_scaling(1.0, "fan_out", "normal"),
        rngs: nnx.Rngs,
    ):
        head_dim = head_features("HaloAttention", in_features, num_heads)
        block = check_positive("HaloAttention", "block_size", block_size)
        halo = check_at_least("HaloAttention", "halo_size", halo_size, 0)
        project = functools.partial(
            LinearGeneral,
            in_features,
            (num_heads, head_dim),
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )

        def table(size: int) -> nnx.Param:
            shape = (2 * size - 1, head_dim)
            return nnx.Param(position_init(rngs.params(), shape, param_dtype))

        self.query = project()
        self.key = project()
        self.value = project()
        height = width = block + 2 * halo
        self.relative_height = table(height)
        self.relative_width = table(width)
        self.in_features = in_features
        self.block_size = block
        self.halo_size = halo
        self.scale_positions = scale_positions
        self.mask_padding = mask_padding

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each block of an image `[*B, H, W, C]` to its surroundings.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, blocks, N, b², w²]` as
            `nnx.Intermediate`; raises outside `nnx.capture`.

        Returns:
          The output `[*B, H, W, C]`.
        """
        check_features("HaloAttention", x, self.in_features)
        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(sow_on_request, self))
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
            attention=attention,
        )
