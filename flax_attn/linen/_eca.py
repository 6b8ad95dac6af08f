"""Efficient channel attention as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation
from flax_attn.linen._layers import Conv
from flax_attn.linen._module import Module
from flax_attn.vision import eca_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._eca import as_kernel_size
from flax_attn.vision._gates import apply_gate


class ECA(Module, kw_only=True):
    """Efficient channel attention, `flax_attn.vision.eca`.

    Parameter `conv`; sows `gate` `[*B, 1, 1, C]`.

    Attributes:
      kernel_size: k, odd; None takes the paper's `eca_kernel_size(C)`.
      gate_fn: From the convolved statistics to the gate.
      dtype: dtype of the convolution, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameter.
      kernel_init: Initializer of the kernel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.ECA().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int | None = None
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = as_image("ECA", x)
        size = as_kernel_size(x.shape[-1], self.kernel_size)
        conv = Conv(
            1,
            (size,),
            padding=size // 2,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )
        gate = eca_gate(x, conv, gate_fn=self.gate_fn)
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
