"""Attention pooling as a Linen module."""

import jax
from flax import linen as nn
from flax.typing import Initializer

from flax_attn._checks import head_features, output_features
from flax_attn.linen._module import LayerModule
from flax_attn.vision import attention_pool


class AttentionPool(LayerModule, kw_only=True):
    """Attention pooling, `flax_attn.vision.attention_pool`.

    Parameters `query`, `key`, `value`, `out`, and `positions` `[1 + H · W, C]`: all images must
    have the same size.

    Attributes:
      num_heads: N, of D = C // N channels each; C / 64 in CLIP.
      out_features: M; C by default.
      use_bias: If True, the layers have biases.
      position_init: Initializer of the positions; variance 1 / C by default, as in CLIP.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> pool = linen.AttentionPool(out_features=10)
      >>> pool.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 10)
    """

    num_heads: int = 8
    out_features: int | None = None
    use_bias: bool = True
    position_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Pool `[*B, H, W, C]` to `[*B, M]`; may sow `attention_weights` `[*B, N, 1, 1 + H·W]`."""
        x = self._image(x)
        height, width, features = x.shape[-3:]
        heads = (self.num_heads, head_features("AttentionPool", features, self.num_heads))
        out_features = output_features("AttentionPool", features, self.out_features)
        shape = (1 + height * width, features)
        return attention_pool(
            x,
            self.param("positions", self.position_init, shape, self.param_dtype),
            self._heads(heads, "query", use_bias=self.use_bias),
            self._heads(heads, "key", use_bias=self.use_bias),
            self._heads(heads, "value", use_bias=self.use_bias),
            self._join(out_features, "out", use_bias=self.use_bias),
            attention=self._attention(sow_weights),
        )
