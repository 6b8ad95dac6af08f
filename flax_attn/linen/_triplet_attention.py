"""Triplet attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv
from flax_attn.linen._module import Module
from flax_attn.linen._norm import SlowBatchNorm, with_phase
from flax_attn.vision._triplet_attention import triplet_attention_and_gate


class TripletAttention(Module, kw_only=True):
    """Triplet attention, `flax_attn.vision.triplet_attention`.

    Parameters `conv_cw`, `norm_cw`, `conv_hc`, `norm_hc`, `conv_hw`, `norm_hw`; sows `gate`
    `[*B, H, W, C]`, the mean of the planes' gates.

    Attributes:
      kernel_size: Width of the kernels, odd.
      use_spatial: Whether the plane (H, W) has a gate too.
      use_bias: Whether the convolutions have biases.
      norm: Makes each normalisation, of one channel; by default batch normalisation with the
        released code's momentum (an update weighs 0.01) and an exact variance. One of your own may
        know its phase: `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      gate_fn: From the normalised planes to the gates.
      dtype: dtype of the convolutions, as in Flax; the pooled planes are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> gate = linen.TripletAttention(use_running_average=True)
      >>> gate.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 7
    use_spatial: bool = True
    use_bias: bool = False
    norm: Any = SlowBatchNorm
    use_running_average: bool | None = None
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`. The phase is given here or before."""
        size = check_odd("TripletAttention", self.kernel_size)
        norm = with_phase(
            "TripletAttention", self.norm, self.use_running_average, use_running_average
        )
        conv = functools.partial(
            Conv,
            1,
            (size, size),
            padding=size // 2,
            conv_general_dilated=convolve,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        planes = ("cw", "hc", "hw") if self.use_spatial else ("cw", "hc")
        layers = {f"conv_{plane}": conv(name=f"conv_{plane}") for plane in planes}
        layers |= {f"norm_{plane}": norm(name=f"norm_{plane}") for plane in planes}
        y, gate = triplet_attention_and_gate(x, **layers, gate_fn=self.gate_fn)
        self.sow("intermediates", "gate", gate)
        return y
