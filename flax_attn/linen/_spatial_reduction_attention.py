"""Spatial-reduction attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.linen._norm import LayerNorm, default_norm
from flax_attn.vision import spatial_reduction_attention
from flax_attn.vision._spatial_reduction_attention import spatial_reduction_head_dim


class SpatialReductionAttention(LayerModule, kw_only=True):
    """Spatial-reduction attention, `flax_attn.vision.spatial_reduction_attention`.

    Parameters `query`, `key`, `value`, `out`, and `reduce`, `norm` if the image is reduced or
    pooled. The linear form of PVT v2 is `reduction=1, pool_size=7` with the exact GELU,
    `activation_fn=functools.partial(jax.nn.gelu, approximate=False)`.

    Attributes:
      num_heads: N, of D = C // N channels each.
      reduction: R, the kernel size and strides of `reduce`: 8, 4, 2, 1 in the four stages of the
        paper.
      use_bias: If True, queries, keys and values have biases; the other layers always have.
      norm: Makes the normalisation after `reduce`.

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

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each place of an image `[*B, H, W, C]` to the reduced image.

        With `sow_weights`, sows `attention_weights` `[*B, N, T, S]`.
        """
        x = self._image(x)
        features, size = x.shape[-1], self.reduction
        heads = (self.num_heads, spatial_reduction_head_dim(features, self.num_heads, size))
        reduce = norm = None
        if size > 1 or self.pool_size is not None:
            reduce = self._conv(features, size, "reduce", strides=size, padding=0)
            norm = self.norm(name="norm")
        return spatial_reduction_attention(
            x,
            self._heads(heads, "query", use_bias=self.use_bias),
            self._heads(heads, "key", use_bias=self.use_bias),
            self._heads(heads, "value", use_bias=self.use_bias),
            self._join(features, "out"),
            reduce=reduce,
            norm=norm,
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            attention=self._attention(sow_weights),
        )
