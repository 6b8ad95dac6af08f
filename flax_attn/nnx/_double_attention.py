"""Double attention as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, check_positive, reduced_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import double_attention


class DoubleAttention(Module):
    """Double attention, `flax_attn.vision.double_attention`.

    Parameters `value`, `gather`, `distribute`, `out`; sows `attention_weights`, the pair of
    gathering and distributing weights, each `[*B, H, W, S]`.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      num_descriptors: S, default R.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax; the weights are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.DoubleAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        num_descriptors: int | None = None,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("DoubleAttention", in_features, reduction, hidden_features)
        descriptors = hidden if num_descriptors is None else num_descriptors
        check_positive("DoubleAttention", "num_descriptors", descriptors)
        linear = functools.partial(
            Linear,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.value = linear(in_features, hidden)
        self.gather = linear(in_features, descriptors)
        self.distribute = linear(in_features, descriptors)
        self.out = linear(hidden, in_features)
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gather and distribute the features of an image `[*B, H, W, C]`."""
        check_features("DoubleAttention", x, self.in_features)
        y, weights = double_attention(
            x, self.value, self.gather, self.distribute, self.out, return_weights=True
        )
        sow(self, "attention_weights", weights)
        return y
