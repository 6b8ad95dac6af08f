"""Spatial attention as an NNX module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import spatial_attention_gate
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._spatial_attention import Pooling


class SpatialAttention(Module):
    """Spatial attention, `flax_attn.vision.spatial_attention`.

    Parameters `conv` (and `norm`); sows `gate` `[*B, H, W, 1]`. No width is needed: the two pooled
    maps are all that it reads.

    Args:
      kernel_size: Width of the kernel, odd; the paper's is 7.
      use_bias: Whether the convolution has a bias.
      norm: Makes the normalisation of the convolved map, called as `norm(1, rngs=rngs)`, for
        example `nnx.BatchNorm`; None for none.
      order: Which of the two channels is which: `("max", "mean")` for the released weights.
      gate_fn: From the convolved map to the gate.
      dtype: dtype of the convolution, as in Flax; the pooled maps are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.SpatialAttention(rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        *,
        kernel_size: int = 3,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        order: Sequence[Pooling] = ("mean", "max"),
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        size = check_odd("SpatialAttention", kernel_size)
        self.conv = Conv(
            2,
            1,
            (size, size),
            padding=size // 2,
            conv_general_dilated=convolve,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.norm = nnx.data(None if norm is None else norm(1, rngs=rngs))
        self.order = tuple(order)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        gate = spatial_attention_gate(
            x, self.conv, norm=self.norm, order=self.order, gate_fn=self.gate_fn
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
