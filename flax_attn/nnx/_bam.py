"""The bottleneck attention module as an NNX module."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import bam_gate
from flax_attn.vision._bam import bam_features


class BAM(Module):
    """The bottleneck attention module, `flax_attn.vision.bam`.

    Parameters `reduce`, `reduce_norm`, `expand`, `conv_0 ...`, `conv_norm_0 ...`, `project`. Sows
    `gate` `[*B, H, W, C]`, the factor 1 + σ(M_c + M_s).

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      kernel_size: Size of the dilated kernels, odd.
      dilation: Their dilation.
      num_convs: Number of dilated convolutions; they follow a pointwise one.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.BAM(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 16,
        hidden_features: int | None = None,
        kernel_size: int = 3,
        dilation: int = 4,
        num_convs: int = 2,
        combine: Literal["add", "multiply"] = "add",
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = bam_features(
            in_features, reduction, hidden_features, kernel_size, dilation, num_convs
        )
        layers = self._layers(rngs, **layer_options)
        self.reduce = layers.linear(in_features, hidden, use_bias=use_bias)
        self.reduce_norm = layers.norm(norm, hidden)
        self.expand = layers.linear(hidden, in_features, use_bias=use_bias)
        self.conv_0 = layers.linear(in_features, hidden, use_bias=use_bias)
        for i in range(1, num_convs + 1):
            conv = layers.conv(hidden, hidden, kernel_size, use_bias=use_bias, dilation=dilation)
            setattr(self, f"conv_{i}", conv)
        for i in range(num_convs + 1):
            setattr(self, f"conv_norm_{i}", layers.norm(norm, hidden))
        self.project = layers.linear(hidden, 1, use_bias=use_bias)
        self.num_convs = num_convs
        self.combine = combine
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = bam_gate(
            x,
            self.reduce,
            self.reduce_norm,
            self.expand,
            [getattr(self, f"conv_{i}") for i in range(self.num_convs + 1)],
            [getattr(self, f"conv_norm_{i}") for i in range(self.num_convs + 1)],
            self.project,
            combine=self.combine,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
