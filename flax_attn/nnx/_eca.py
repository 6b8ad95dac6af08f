"""Efficient channel attention as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features
from flax_attn.nnx._layers import Conv
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import eca_gate
from flax_attn.vision._eca import as_kernel_size
from flax_attn.vision._gates import apply_gate


class ECA(Module):
    """Efficient channel attention, `flax_attn.vision.eca`.

    Parameter `conv`; sows `gate` `[*B, 1, 1, C]`.

    Args:
      in_features: C.
      kernel_size: k, odd; None takes the paper's `eca_kernel_size(C)`.
      gate_fn: From the convolved statistics to the gate.
      dtype: dtype of the convolution, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameter.
      kernel_init: Initializer of the kernel.
      rngs: Keys for the parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.ECA(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int | None = None,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        rngs: nnx.Rngs,
    ):
        size = as_kernel_size(in_features, kernel_size)
        self.conv = Conv(
            1,
            1,
            (size,),
            padding=size // 2,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        check_features("ECA", x, self.in_features)
        gate = eca_gate(x, self.conv, gate_fn=self.gate_fn)
        sow(self, "gate", gate)
        return apply_gate(x, gate)
