"""Spatial-reduction attention as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import LayerNorm
from flax_attn.vision import spatial_reduction_attention
from flax_attn.vision._spatial_reduction_attention import spatial_reduction_head_dim


class SpatialReductionAttention(Module):
    """Spatial-reduction attention, `flax_attn.vision.spatial_reduction_attention`.

    Parameters `query`, `key`, `value`, `out`, and `reduce`, `norm` if the image is reduced or
    pooled. The linear form of PVT v2 is `reduction=1, pool_size=7` with the exact GELU,
    `activation_fn=functools.partial(jax.nn.gelu, approximate=False)`.

    Args:
      in_features: C.
      num_heads: N, of D = C // N channels each.
      reduction: R, the kernel size and strides of `reduce`: 8, 4, 2, 1 in the four stages of the
        paper.
      use_bias: If True, queries, keys and values have biases; the other layers always have.
      norm: Makes the normalisation after `reduce`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.SpatialReductionAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 8, 8, 16))).shape
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
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        size = reduction
        heads = (num_heads, spatial_reduction_head_dim(in_features, num_heads, size))
        layers = self._layers(rngs, **layer_options)
        self.query = layers.heads(in_features, heads, use_bias=use_bias)
        self.key = layers.heads(in_features, heads, use_bias=use_bias)
        self.value = layers.heads(in_features, heads, use_bias=use_bias)
        self.out = layers.join(heads, in_features)
        self.reduce = self.norm = nnx.data(None)
        if size > 1 or pool_size is not None:
            self.reduce = layers.conv(in_features, in_features, size, strides=size, padding=0)
            self.norm = layers.norm(norm, in_features)
        self.pool_size = pool_size
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each place of an image `[*B, H, W, C]` to the reduced image.

        With `sow_weights`, sows `attention_weights` `[*B, N, T, S]`.
        """
        self._check(x)
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
            attention=self._attention(sow_weights),
        )
