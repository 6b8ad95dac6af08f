"""Squeeze-and-excitation as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, reduced_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import squeeze_excite_gate
from flax_attn.vision._gates import apply_gate


class SqueezeExcite(Module):
    """Squeeze-and-excitation, `flax_attn.vision.squeeze_excite`.

    Parameters `reduce`, `expand`; sows `gate` `[*B, 1, 1, C]`.

    Args:
      in_features: C.
      reduction: R = C // reduction; the paper's is 16.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the two maps have biases, as in the paper's released models.
      activation_fn: Between the maps.
      gate_fn: From the expanded statistics to the gate.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.SqueezeExcite(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        use_bias: bool = False,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("SqueezeExcite", in_features, reduction, hidden_features)
        linear = functools.partial(
            Linear,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.reduce = linear(in_features, hidden)
        self.expand = linear(hidden, in_features)
        self.activation_fn = activation_fn
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        check_features("SqueezeExcite", x, self.in_features)
        gate = squeeze_excite_gate(
            x, self.reduce, self.expand, activation_fn=self.activation_fn, gate_fn=self.gate_fn
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
