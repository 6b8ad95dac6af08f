"""scSE as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, reduced_features
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision._scse import Combine, scse_and_gate


class SCSE(Module):
    """Concurrent spatial and channel squeeze-and-excitation, `flax_attn.vision.scse`.

    Parameters `reduce`, `expand`, `project`; sows `gate` `[*B, H, W, C]`, both gates joined.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      combine: `"max"` as in the released code, `"add"` as in the paper.
      use_bias: Whether the three maps have biases.
      activation_fn: Between `reduce` and `expand`.
      gate_fn: From what the maps return to both gates.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.SCSE(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 2,
        hidden_features: int | None = None,
        combine: Combine = "max",
        use_bias: bool = True,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("SCSE", in_features, reduction, hidden_features)
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
        self.project = linear(in_features, 1, dot_general=dot_of_one)
        self.combine = combine
        self.activation_fn = activation_fn
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels and the places of an image `[*B, H, W, C]`."""
        check_features("SCSE", x, self.in_features)
        y, gate = scse_and_gate(
            x,
            self.reduce,
            self.expand,
            self.project,
            self.combine,
            self.activation_fn,
            self.gate_fn,
        )
        sow(self, "gate", gate)
        return y
