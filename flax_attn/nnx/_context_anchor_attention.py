"""Context anchor attention as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, check_odd
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import DetectorBatchNorm
from flax_attn.vision import context_anchor_attention_gate


class ContextAnchorAttention(Module):
    """Context anchor attention, `flax_attn.vision.context_anchor_attention`.

    Parameters `project_in`, `norm_in`, `row`, `column`, `project_out`, `norm_out`. Sows `gate`
    `[*B, H, W, C]`.

    Args:
      in_features: C.
      kernel_size: Length of the strips, odd; in the paper's networks it grows with the depth.
      use_bias: If True, the strips have biases, and without a norm the projections, too.
      norm: As in all modules that normalise; by default with the momentum 0.97 (of Flax) and the
        ε = 1e-3 of the released code. None for none:
        `norm=None, activation_fn=lambda u: u` is the form of the released networks.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.ContextAnchorAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 11,
        pool_size: int = 7,
        use_bias: bool = True,
        norm: Callable[..., Any] | None = DetectorBatchNorm,
        activation_fn: Activation = jax.nn.silu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        size = check_odd("ContextAnchorAttention", kernel_size)
        check_odd("ContextAnchorAttention", pool_size, "pool_size")
        features, project_bias = in_features, use_bias and norm is None
        layers = self._layers(rngs, **layer_options)
        self.project_in = layers.linear(features, features, use_bias=project_bias)
        self.norm_in = layers.norm(norm, features)
        self.row = layers.conv(features, features, (1, size), use_bias=use_bias, groups=features)
        self.column = layers.conv(features, features, (size, 1), use_bias=use_bias, groups=features)
        self.project_out = layers.linear(features, features, use_bias=project_bias)
        self.norm_out = layers.norm(norm, features)
        self.pool_size = pool_size
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = context_anchor_attention_gate(
            x,
            self.project_in,
            self.norm_in,
            self.row,
            self.column,
            self.project_out,
            self.norm_out,
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
