"""Attention pooling as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import head_features, output_features
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.linen._layers import DenseGeneral
from flax_attn.linen._module import Module
from flax_attn.vision import attention_pool
from flax_attn.vision._checks import as_image


class AttentionPool(Module, kw_only=True):
    """Attention pooling, `flax_attn.vision.attention_pool`.

    Parameters `query`, `key`, `value`, `out`, and `positions` `[1 + H · W, C]`, which bind the
    module to images of one size.

    Attributes:
      num_heads: N, of D = C // N channels each; C / 64 in CLIP.
      out_features: M, default C.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax; the mean and the softmax are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      position_init: Initializer of the positions; a variance of 1 / C by default, as in CLIP.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    position_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Pool an image `[*B, H, W, C]`.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, N, 1, 1 + H · W]` into
            "intermediates".

        Returns:
          One vector for each image `[*B, M]`.
        """
        x = as_image("AttentionPool", x)
        height, width, features = x.shape[-3:]
        head_dim = head_features("AttentionPool", features, self.num_heads)
        out_features = output_features("AttentionPool", features, self.out_features)
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        heads = functools.partial(DenseGeneral, (self.num_heads, head_dim), **settings)
        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(self.sow, "intermediates"))
        return attention_pool(
            x,
            self.param(
                "positions", self.position_init, (1 + height * width, features), self.param_dtype
            ),
            heads(name="query"),
            heads(name="key"),
            heads(name="value"),
            DenseGeneral(out_features, axis=(-2, -1), name="out", **settings),
            attention=attention,
        )
