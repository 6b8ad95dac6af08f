"""Squeeze-and-excitation as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import squeeze_excite_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class SqueezeExcite(Module, kw_only=True):
    """Squeeze-and-excitation, `flax_attn.vision.squeeze_excite`.

    Parameters `reduce`, `expand`; sows `gate` `[*B, 1, 1, C]`.

    Attributes:
      reduction: R = C // reduction; the paper's is 16.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the two maps have biases, as in the paper's released models.
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
      >>> linen.SqueezeExcite().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 4
    hidden_features: int | None = None
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
        x = as_image("SqueezeExcite", x)
        features = x.shape[-1]
        hidden = reduced_features("SqueezeExcite", features, self.reduction, self.hidden_features)
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        gate = squeeze_excite_gate(
            x,
            dense(hidden, name="reduce"),
            dense(features, name="expand"),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
