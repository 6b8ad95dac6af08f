"""Separable self-attention as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import separable_attention


class SeparableAttention(Module):
    """Separable self-attention, `flax_attn.vision.separable_attention`.

    Parameters `score`, `key`, `value`, `out`; sows `attention_weights` `[*B, H, W, 1]`.

    Args:
      in_features: C.
      patch_size: Width of the patches; 2 in MobileViT v2, where the places with one position in
        their patch attend to each other.
      use_bias: Whether the maps have biases.
      activation_fn: Of the values.
      dtype: dtype of the maps, as in Flax; the softmax and the context are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> attention = nnx.SeparableAttention(16, patch_size=2, rngs=flax_nnx.Rngs(0))
      >>> attention(jnp.ones((2, 8, 6, 16))).shape
      (2, 8, 6, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        patch_size: int = 1,
        use_bias: bool = True,
        activation_fn: Activation = jax.nn.relu,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            Linear,
            in_features,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.score = linear(1)
        self.key = linear(in_features)
        self.value = linear(in_features)
        self.out = linear(in_features)
        self.in_features = in_features
        self.patch_size = patch_size
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        check_features("SeparableAttention", x, self.in_features)
        y, weights = separable_attention(
            x,
            self.score,
            self.key,
            self.value,
            self.out,
            patch_size=self.patch_size,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        sow(self, "attention_weights", weights)
        return y
