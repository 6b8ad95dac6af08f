"""Halo attention as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_at_least, check_positive, head_features
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.linen._layers import DenseGeneral
from flax_attn.linen._module import Module
from flax_attn.vision import halo_attention
from flax_attn.vision._checks import as_image


class HaloAttention(Module, kw_only=True):
    """Halo attention, `flax_attn.vision.halo_attention`.

    Parameters `query`, `key`, `value`, and the tables `relative_height`, `relative_width`
    `[2 w − 1, D]`.

    Attributes:
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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    position_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each block of an image `[*B, H, W, C]` to its surroundings.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, blocks, N, b², w²]` into
            "intermediates".

        Returns:
          The output `[*B, H, W, C]`.
        """
        x = as_image("HaloAttention", x)
        head_dim = head_features("HaloAttention", x.shape[-1], self.num_heads)
        block = check_positive("HaloAttention", "block_size", self.block_size)
        halo = check_at_least("HaloAttention", "halo_size", self.halo_size, 0)
        project = functools.partial(
            DenseGeneral,
            (self.num_heads, head_dim),
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )

        def table(name: str, size: int) -> jax.Array:
            shape = (2 * size - 1, head_dim)
            return self.param(name, self.position_init, shape, self.param_dtype)

        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(self.sow, "intermediates"))
        height = width = block + 2 * halo
        return halo_attention(
            x,
            project(name="query"),
            project(name="key"),
            project(name="value"),
            table("relative_height", height),
            table("relative_width", width),
            block_size=block,
            halo_size=halo,
            scale_positions=self.scale_positions,
            mask_padding=self.mask_padding,
            attention=attention,
        )
