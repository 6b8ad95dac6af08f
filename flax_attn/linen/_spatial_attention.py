"""Spatial attention as a Linen module."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv
from flax_attn.linen._module import Module
from flax_attn.vision import spatial_attention_gate
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._spatial_attention import Pooling


class SpatialAttention(Module, kw_only=True):
    """Spatial attention, `flax_attn.vision.spatial_attention`.

    Parameters `conv` (and `norm`); sows `gate` `[*B, H, W, 1]`.

    Attributes:
      kernel_size: Width of the kernel, odd; the paper's is 7.
      use_bias: Whether the convolution has a bias.
      norm: Makes the normalisation of the convolved map, for example
        `functools.partial(nn.BatchNorm, use_running_average=not train)`; None for none.
      order: Which of the two channels is which: `("max", "mean")` for the released weights.
      gate_fn: From the convolved map to the gate.
      dtype: dtype of the convolution, as in Flax; the pooled maps are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.SpatialAttention().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 3
    use_bias: bool = False
    norm: Any = None
    order: Sequence[Pooling] = ("mean", "max")
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        size = check_odd("SpatialAttention", self.kernel_size)
        conv = Conv(
            1,
            (size, size),
            padding=size // 2,
            conv_general_dilated=convolve,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="conv",
        )
        norm = None if self.norm is None else self.norm(name="norm")
        gate = spatial_attention_gate(x, conv, norm=norm, order=self.order, gate_fn=self.gate_fn)
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
