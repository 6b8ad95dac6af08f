"""Frequency channel attention as a Linen module."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import frequency_channel_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class FrequencyChannelAttention(Module, kw_only=True):
    """Frequency channel attention, `flax_attn.vision.frequency_channel_attention`.

    Parameters `reduce`, `expand`; sows `gate` `[*B, 1, 1, C]`. The cosines are constants.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      frequencies: How many of the 32 that the paper found best, or pairs (u, v), each 0 to 6. C
        must be a multiple of their number.
      dct_size: The height and width that the image is pooled to, of at least 7; one number for
        both. The paper's ResNets have 56, 28, 14, 7.
      use_bias: Whether the two maps have biases.
      activation_fn: Between the maps.
      gate_fn: From the expanded statistics to the gate.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.FrequencyChannelAttention().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 16
    hidden_features: int | None = None
    frequencies: int | Sequence[tuple[int, int]] = 16
    dct_size: int | tuple[int, int] = 7
    use_bias: bool = False
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = as_image("FrequencyChannelAttention", x)
        features = x.shape[-1]
        hidden = reduced_features(
            "FrequencyChannelAttention", features, self.reduction, self.hidden_features
        )
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        gate = frequency_channel_attention_gate(
            x,
            dense(hidden, name="reduce"),
            dense(features, name="expand"),
            frequencies=self.frequencies,
            dct_size=self.dct_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
