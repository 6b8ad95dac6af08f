"""Triplet attention as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import SlowBatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision._triplet_attention import triplet_attention_and_gate


class TripletAttention(Module):
    """Triplet attention, `flax_attn.vision.triplet_attention`.

    Parameters `conv_cw`, `norm_cw`, `conv_hc`, `norm_hc`, `conv_hw`, `norm_hw`; sows `gate`
    `[*B, H, W, C]`, the mean of the planes' gates. No width is needed: the pooled planes are all
    that it reads.

    Args:
      kernel_size: Width of the kernels, odd.
      use_spatial: Whether the plane (H, W) has a gate too.
      use_bias: Whether the convolutions have biases.
      norm: Makes each normalisation, of one channel, called as `norm(1, rngs=rngs)`; by default
        batch normalisation with the released code's momentum (an update weighs 0.01) and an exact
        variance.
      gate_fn: From the normalised planes to the gates.
      dtype: dtype of the convolutions, as in Flax; the pooled planes are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.TripletAttention(rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        *,
        kernel_size: int = 7,
        use_spatial: bool = True,
        use_bias: bool = False,
        norm: Callable[..., Any] = SlowBatchNorm,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        size = check_odd("TripletAttention", kernel_size)
        conv = functools.partial(
            Conv,
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
        self.conv_cw, self.norm_cw = conv(), norm(1, rngs=rngs)
        self.conv_hc, self.norm_hc = conv(), norm(1, rngs=rngs)
        self.conv_hw = nnx.data(conv() if use_spatial else None)
        self.norm_hw = nnx.data(norm(1, rngs=rngs) if use_spatial else None)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        y, gate = triplet_attention_and_gate(
            x,
            conv_cw=self.conv_cw,
            norm_cw=self.norm_cw,
            conv_hc=self.conv_hc,
            norm_hc=self.norm_hc,
            conv_hw=self.conv_hw,
            norm_hw=self.norm_hw,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gate)
        return y
