"""Spatial-reduction attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_positive, head_features
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.linen._layers import Conv, DenseGeneral
from flax_attn.linen._module import Module
from flax_attn.linen._norm import LayerNorm, default_norm
from flax_attn.vision import spatial_reduction_attention
from flax_attn.vision._checks import as_image


class SpatialReductionAttention(Module, kw_only=True):
    """Spatial-reduction attention, `flax_attn.vision.spatial_reduction_attention`.

    Parameters `query`, `key`, `value`, `out`, and `reduce`, `norm` if the image is reduced or
    pooled. The linear form of PVT v2 is `reduction=1, pool_size=7` with the exact GELU,
    `activation_fn=functools.partial(jax.nn.gelu, approximate=False)`.

    Attributes:
      num_heads: N, of D = C // N channels each.
      reduction: R, the width and stride of the convolution before keys and values; the paper has
        8, 4, 2, 1 from the first stage to the last.
      pool_size: Width of the image that x is averaged to first; None for none.
      activation_fn: After the normalisation; None for none.
      use_bias: Whether the queries, keys and values have biases; the other maps have one.
      norm: Makes the normalisation of the reduced image.
      dtype: dtype of the maps, as in Flax; the softmax is float32, and `norm` has a dtype of its
        own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.SpatialReductionAttention(num_heads=4)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 16)))[0].shape
      (2, 8, 8, 16)
    """

    num_heads: int = 8
    reduction: int = 2
    pool_size: int | None = None
    activation_fn: Activation | None = None
    use_bias: bool = True
    norm: Any = default_norm(LayerNorm)
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each place of an image `[*B, H, W, C]` to the reduced image.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, N, T, S]` into "intermediates".

        Returns:
          The output `[*B, H, W, C]`.
        """
        x = as_image("SpatialReductionAttention", x)
        features = x.shape[-1]
        size = check_positive("SpatialReductionAttention", "reduction", self.reduction)
        head_dim = head_features("SpatialReductionAttention", features, self.num_heads)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        heads = functools.partial(
            DenseGeneral, (self.num_heads, head_dim), use_bias=self.use_bias, **settings
        )
        conv = functools.partial(
            Conv, features, (size, size), strides=size, padding="VALID", **settings
        )
        reduces = size > 1 or self.pool_size is not None
        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(self.sow, "intermediates"))
        return spatial_reduction_attention(
            x,
            heads(name="query"),
            heads(name="key"),
            heads(name="value"),
            DenseGeneral(features, axis=(-2, -1), name="out", **settings),
            reduce=conv(name="reduce") if reduces else None,
            norm=self.norm(name="norm") if reduces else None,
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            attention=attention,
        )
