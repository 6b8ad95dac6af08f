"""Triplet attention as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, check_odd
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import SlowBatchNorm
from flax_attn.vision._triplet_attention import triplet_attention_and_gate


class TripletAttention(Module):
    """Triplet attention, `flax_attn.vision.triplet_attention`.

    Parameters `conv_cw`, `norm_cw`, `conv_hc`, `norm_hc`, `conv_hw`, `norm_hw`. Sows `gate`
    `[*B, H, W, C]`, the mean of the gates of all planes.

    Args:
      in_features: C; any number of channels if it is left out.
      kernel_size: Size of the kernels, odd.
      use_spatial: If True, the plane (H, W) has a gate, too.
      use_bias: If True, the convolutions have biases.
      norm: As in all modules that normalise; by default with the momentum of the released code: an
        update has weight 0.01.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.TripletAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        kernel_size: int = 7,
        use_spatial: bool = True,
        use_bias: bool = False,
        norm: Callable[..., Any] = SlowBatchNorm,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        size = check_odd("TripletAttention", kernel_size)
        layers = self._layers(rngs, **layer_options)
        self.conv_cw = layers.conv(2, 1, size, use_bias=use_bias)
        self.norm_cw = layers.norm(norm, 1)
        self.conv_hc = layers.conv(2, 1, size, use_bias=use_bias)
        self.norm_hc = layers.norm(norm, 1)
        self.conv_hw = self.norm_hw = nnx.data(None)
        if use_spatial:
            self.conv_hw = layers.conv(2, 1, size, use_bias=use_bias)
            self.norm_hw = layers.norm(norm, 1)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
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
        self._sow("gate", gate)
        return y
