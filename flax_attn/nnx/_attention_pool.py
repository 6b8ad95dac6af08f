"""Attention pooling as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, head_features, output_features
from flax_attn.attention import dot_product_attention
from flax_attn.attention._modules import with_weights
from flax_attn.nnx._layers import LinearGeneral
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow_on_request
from flax_attn.vision import attention_pool
from flax_attn.vision._checks import as_image
from flax_attn.vision._windows import as_pair


class AttentionPool(Module):
    """Attention pooling, `flax_attn.vision.attention_pool`.

    Parameters `query`, `key`, `value`, `out`, and `positions` `[1 + H · W, C]`, which bind the
    module to images of one size.

    Args:
      in_features: C.
      input_size: (H, W) of the images, for which the positions are made.
      num_heads: N, of D = C // N channels each; C / 64 in CLIP.
      out_features: M, default C.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax; the mean and the softmax are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      position_init: Initializer of the positions; a variance of 1 / C by default, as in CLIP.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> pool = nnx.AttentionPool(16, (7, 7), out_features=10, rngs=flax_nnx.Rngs(0))
      >>> pool(jnp.ones((2, 7, 7, 16))).shape
      (2, 10)
    """

    def __init__(
        self,
        in_features: int,
        input_size: tuple[int, int],
        *,
        num_heads: int = 8,
        out_features: int | None = None,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        position_init: Initializer = nnx.initializers.variance_scaling(1.0, "fan_out", "normal"),
        rngs: nnx.Rngs,
    ):
        height, width = as_pair("AttentionPool", "input_size", input_size, 1)
        heads = (num_heads, head_features("AttentionPool", in_features, num_heads))
        out_features = output_features("AttentionPool", in_features, out_features)
        linear = functools.partial(
            LinearGeneral,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        shape = (1 + height * width, in_features)
        self.positions = nnx.Param(position_init(rngs.params(), shape, param_dtype))
        self.query = linear(in_features, heads)
        self.key = linear(in_features, heads)
        self.value = linear(in_features, heads)
        self.out = linear(heads, out_features, axis=(-2, -1))
        self.in_features = in_features
        self.input_size = (height, width)

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Pool an image `[*B, H, W, C]`.

        Args:
          x: Image `[*B, H, W, C]`.
          sow_weights: Whether to sow `attention_weights` `[*B, N, 1, 1 + H · W]` as
            `nnx.Intermediate`; raises outside `nnx.capture`.

        Returns:
          One vector for each image `[*B, M]`.
        """
        check_features("AttentionPool", x, self.in_features)
        x = as_image("AttentionPool", x)
        if x.shape[-3:-1] != self.input_size:
            raise ValueError(
                f"AttentionPool: the image must have the size (H, W) = {self.input_size} that the "
                f"module was made for, got {list(x.shape)}."
            )
        attention = dot_product_attention
        if sow_weights:
            attention = with_weights(attention, functools.partial(sow_on_request, self))
        return attention_pool(
            x,
            self.positions[...],
            self.query,
            self.key,
            self.value,
            self.out,
            attention=attention,
        )
