"""Spatial-reduction attention as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, check_positive, head_features
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.nnx._layers import Conv, LinearGeneral
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import LayerNorm
from flax_attn.nnx._sow import sow_on_request
from flax_attn.vision import spatial_reduction_attention


class SpatialReductionAttention(Module):
    """Spatial-reduction attention, `flax_attn.vision.spatial_reduction_attention`.

    Parameters `query`, `key`, `value`, `out`, and `reduce`, `norm` if the image is reduced or
    pooled. The linear form of PVT v2 is `reduction=1, pool_size=7` with the exact GELU,
    `activation_fn=functools.partial(jax.nn.gelu, approximate=False)`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each.
      reduction: R, the width and stride of the convolution before keys and values; the paper has
        8, 4, 2, 1 from the first stage to the last.
      pool_size: Width of the image that x is averaged to first; None for none.
      activation_fn: After the normalisation; None for none.
      use_bias: Whether the queries, keys and values have biases; the other maps have one.
      norm: Makes the normalisation of the reduced image, called as `norm(C, rngs=rngs)`.
      dtype: dtype of the maps, as in Flax; the softmax is float32, and `norm` has a dtype of its
        own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.SpatialReductionAttention(16, num_heads=4, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 8, 8, 16))).shape
      (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        reduction: int = 2,
        pool_size: int | None = None,
        activation_fn: Activation | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = LayerNorm,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        size = check_positive("SpatialReductionAttention", "reduction", reduction)
        heads = (num_heads, head_features("SpatialReductionAttention", in_features, num_heads))
        settings: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        project = functools.partial(
            LinearGeneral, in_features, heads, use_bias=use_bias, **settings
        )
        self.query, self.key, self.value = project(), project(), project()
        self.out = LinearGeneral(heads, in_features, axis=(-2, -1), **settings)
        self.reduce = self.norm = nnx.data(None)
        if size > 1 or pool_size is not None:
            self.reduce = Conv(
                in_features, in_features, (size, size), strides=size, padding="VALID", **settings
            )
            self.norm = norm(in_features, rngs=rngs)
        self.in_features = in_features
        self.pool_size = pool_size
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each place of an image `[*B, H, W, C]` to the reduced image.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, N, T, S]` as `nnx.Intermediate`;
            raises outside `nnx.capture`.

        Returns:
          The output `[*B, H, W, C]`.
        """
        check_features("SpatialReductionAttention", x, self.in_features)
        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(sow_on_request, self))
        return spatial_reduction_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            reduce=self.reduce,
            norm=self.norm,
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            attention=attention,
        )
