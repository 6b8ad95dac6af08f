"""The lambda layer as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, check_odd, check_positive, head_features
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import lambda_layer


class LambdaLayer(Module):
    """The lambda layer, `flax_attn.vision.lambda_layer`.

    Parameters `query`, `query_norm`, `key`, `value`, `value_norm`, `position`.

    Args:
      in_features: C.
      num_heads: N; the values have C // N channels.
      key_features: K, the width of the keys and of each head's queries.
      kernel_size: r, the width of the lambda convolution, odd.
      use_bias: Whether the queries, keys and values have biases; the lambda convolution has one.
      norm: Makes each normalisation, called as `norm(features, rngs=rngs)`.
      dtype: dtype of the maps, as in Flax; the softmax and the lambdas are float32, and `norm` has
        a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.LambdaLayer(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 4,
        key_features: int = 16,
        kernel_size: int = 9,
        use_bias: bool = False,
        norm: Callable[..., Any] = BatchNorm,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        head_dim = head_features("LambdaLayer", in_features, num_heads)
        check_positive("LambdaLayer", "key_features", key_features)
        size = check_odd("LambdaLayer", kernel_size)
        settings: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        linear = functools.partial(Linear, in_features, use_bias=use_bias, **settings)
        self.query = linear(out_features=num_heads * key_features)
        self.query_norm = norm(num_heads * key_features, rngs=rngs)
        self.key = linear(out_features=key_features)
        self.value = linear(out_features=head_dim)
        self.value_norm = norm(head_dim, rngs=rngs)
        self.position = Conv(1, key_features, (size, size), padding=size // 2, **settings)
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        check_features("LambdaLayer", x, self.in_features)
        return lambda_layer(
            x,
            self.query,
            self.query_norm,
            self.key,
            self.value,
            self.value_norm,
            self.position,
        )
