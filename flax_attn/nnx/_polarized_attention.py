"""Polarized self-attention as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, check_multiple, reduced_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import polarized_attention_gate
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._polarized_attention import Layout


class PolarizedAttention(Module):
    """Polarized self-attention, `flax_attn.vision.polarized_attention`.

    Parameters `channel_query`, `channel_value`, `channel_expand` (and `channel_norm`),
    `spatial_query`, `spatial_value`; sows `gate` `[*B, H, W, C]`.

    Args:
      in_features: C.
      layout: `"parallel"` or `"sequential"`.
      reduction: R = C / reduction, a whole number.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the five maps have biases.
      norm: Makes the normalisation of the channels before their gate, called as
        `norm(C, rngs=rngs)`, for example `nnx.LayerNorm`; None for none.
      gate_fn: From the attended values to the gates.
      dtype: dtype of the maps, as in Flax; softmaxes and sums are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.PolarizedAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        layout: Layout = "parallel",
        reduction: int = 2,
        hidden_features: int | None = None,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("PolarizedAttention", in_features, reduction, hidden_features)
        if hidden_features is None:
            check_multiple("PolarizedAttention", "C", in_features, "reduction", reduction)
        linear = functools.partial(
            Linear,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.channel_query = linear(in_features, 1)
        self.channel_value = linear(in_features, hidden)
        self.channel_expand = linear(hidden, in_features)
        self.channel_norm = nnx.data(None if norm is None else norm(in_features, rngs=rngs))
        self.spatial_query = linear(in_features, hidden)
        self.spatial_value = linear(in_features, hidden)
        self.in_features = in_features
        self.layout = layout
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        check_features("PolarizedAttention", x, self.in_features)
        gate = polarized_attention_gate(
            x,
            self.channel_query,
            self.channel_value,
            self.channel_expand,
            self.spatial_query,
            self.spatial_value,
            channel_norm=self.channel_norm,
            layout=self.layout,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
