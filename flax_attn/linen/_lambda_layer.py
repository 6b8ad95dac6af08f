"""The lambda layer as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_odd, check_positive, head_features
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import BatchNorm, with_phase
from flax_attn.vision import lambda_layer
from flax_attn.vision._checks import as_image


class LambdaLayer(Module, kw_only=True):
    """The lambda layer, `flax_attn.vision.lambda_layer`.

    Parameters `query`, `query_norm`, `key`, `value`, `value_norm`, `position`.

    Attributes:
      num_heads: N; the values have C // N channels.
      key_features: K, the width of the keys and of each head's queries.
      kernel_size: r, the width of the lambda convolution, odd.
      use_bias: Whether the queries, keys and values have biases; the lambda convolution has one.
      norm: Makes each normalisation; by default batch normalisation with PyTorch's momentum and an
        exact variance. One of your own may know its phase:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      dtype: dtype of the maps, as in Flax; the softmax and the lambdas are float32, and `norm` has
        a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> layer = linen.LambdaLayer(use_running_average=True)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    num_heads: int = 4
    key_features: int = 16
    kernel_size: int = 9
    use_bias: bool = False
    norm: Any = BatchNorm
    use_running_average: bool | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`. The phase is given here or before."""
        x = as_image("LambdaLayer", x)
        head_dim = head_features("LambdaLayer", x.shape[-1], self.num_heads)
        check_positive("LambdaLayer", "key_features", self.key_features)
        size = check_odd("LambdaLayer", self.kernel_size)
        norm = with_phase("LambdaLayer", self.norm, self.use_running_average, use_running_average)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        dense = functools.partial(Dense, use_bias=self.use_bias, **settings)
        return lambda_layer(
            x,
            dense(features=self.num_heads * self.key_features, name="query"),
            norm(name="query_norm"),
            dense(features=self.key_features, name="key"),
            dense(features=head_dim, name="value"),
            norm(name="value_norm"),
            Conv(self.key_features, (size, size), padding=size // 2, name="position", **settings),
        )
