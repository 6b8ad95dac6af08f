"""External attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_positive
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import BatchNorm, default_norm, with_phase
from flax_attn.vision import external_attention
from flax_attn.vision._checks import as_image


class ExternalAttention(Module, kw_only=True):
    """External attention, `flax_attn.vision.external_attention`.

    Parameters `query`, `key`, `value`, `out`, `norm`, of which only `query` may have a bias; sows
    `attention_weights` `[*B, H, W, S]`. `value` starts on its own, not as the transpose of `key`.

    Attributes:
      memory_size: S, the number of slots.
      use_bias: Whether `query` has a bias.
      norm: Makes the normalisation; by default batch normalisation with PyTorch's momentum and an
        exact variance. One of your own may know its phase:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      activation_fn: After the sum.
      dtype: dtype of the maps, as in Flax; the weights are float32, and `norm` has a dtype of its
        own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.ExternalAttention(use_running_average=True)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    memory_size: int = 64
    use_bias: bool = True
    norm: Any = default_norm(BatchNorm)
    use_running_average: bool | None = None
    activation_fn: Activation = jax.nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Let an image `[*B, H, W, C]` attend to the memory. The phase is given here or before."""
        x = as_image("ExternalAttention", x)
        features = x.shape[-1]
        check_positive("ExternalAttention", "memory_size", self.memory_size)
        norm = with_phase(
            "ExternalAttention", self.norm, self.use_running_average, use_running_average
        )
        dense = functools.partial(
            Dense,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        y, weights = external_attention(
            x,
            dense(features, use_bias=self.use_bias, name="query"),
            dense(self.memory_size, use_bias=False, name="key"),
            dense(features, use_bias=False, name="value"),
            dense(features, use_bias=False, name="out"),
            norm=norm(name="norm"),
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
