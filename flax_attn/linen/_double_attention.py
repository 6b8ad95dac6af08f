"""Double attention as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_positive, reduced_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import double_attention
from flax_attn.vision._checks import as_image


class DoubleAttention(Module, kw_only=True):
    """Double attention, `flax_attn.vision.double_attention`.

    Parameters `value`, `gather`, `distribute`, `out`; sows `attention_weights`, the pair of
    gathering and distributing weights, each `[*B, H, W, S]`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      num_descriptors: S, default R.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax; the weights are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.DoubleAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 4
    hidden_features: int | None = None
    num_descriptors: int | None = None
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Gather and distribute the features of an image `[*B, H, W, C]`."""
        x = as_image("DoubleAttention", x)
        features = x.shape[-1]
        hidden = reduced_features("DoubleAttention", features, self.reduction, self.hidden_features)
        descriptors = hidden if self.num_descriptors is None else self.num_descriptors
        check_positive("DoubleAttention", "num_descriptors", descriptors)
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        y, weights = double_attention(
            x,
            dense(hidden, name="value"),
            dense(descriptors, name="gather"),
            dense(descriptors, name="distribute"),
            dense(features, name="out"),
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
