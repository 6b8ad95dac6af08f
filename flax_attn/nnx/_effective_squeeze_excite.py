"""Effective squeeze-and-excitation as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import effective_squeeze_excite_gate
from flax_attn.vision._gates import apply_gate


class EffectiveSqueezeExcite(Module):
    """Effective squeeze-and-excitation, `flax_attn.vision.effective_squeeze_excite`.

    Parameters `project`; sows `gate` `[*B, 1, 1, C]`.

    Args:
      in_features: C.
      use_bias: Whether the map has a bias.
      gate_fn: From the projected statistics to the gate.
      dtype: dtype of the map, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.EffectiveSqueezeExcite(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        use_bias: bool = True,
        gate_fn: Activation = jax.nn.hard_sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        self.project = Linear(
            in_features,
            in_features,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        check_features("EffectiveSqueezeExcite", x, self.in_features)
        gate = effective_squeeze_excite_gate(x, self.project, gate_fn=self.gate_fn)
        sow(self, "gate", gate)
        return apply_gate(x, gate)
