"""Context anchor attention as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, check_odd
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import DetectorBatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision import context_anchor_attention_gate
from flax_attn.vision._gates import apply_gate


class ContextAnchorAttention(Module):
    """Context anchor attention, `flax_attn.vision.context_anchor_attention`.

    Parameters `project_in`, `norm_in`, `row`, `column`, `project_out`, `norm_out`; sows `gate`
    `[*B, H, W, C]`.

    Args:
      in_features: C.
      kernel_size: Length of the strips, odd; in the paper's networks it grows with the depth.
      pool_size: Width of the window of the mean, odd.
      use_bias: Whether the strips have biases, and the projections where nothing normalises them.
      norm: Makes each normalisation, called as `norm(C, rngs=rngs)`; by default batch normalisation
        as in the released code, with a momentum of 0.97 in Flax's sense and ε = 1e-3. None for
        none: `norm=None, activation_fn=lambda u: u` is the form of the released networks.
      activation_fn: After each normalisation.
      gate_fn: From the context to the gate.
      dtype: dtype of the maps, as in Flax; `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

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
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        size = check_odd("ContextAnchorAttention", kernel_size)
        check_odd("ContextAnchorAttention", pool_size, "pool_size")
        settings: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        linear = functools.partial(
            Linear, in_features, in_features, use_bias=use_bias and norm is None, **settings
        )
        strip = functools.partial(
            Conv,
            in_features,
            in_features,
            feature_group_count=in_features,
            conv_general_dilated=convolve,
            use_bias=use_bias,
            **settings,
        )
        self.project_in = linear()
        self.norm_in = nnx.data(None if norm is None else norm(in_features, rngs=rngs))
        self.row = strip(kernel_size=(1, size), padding=(0, size // 2))
        self.column = strip(kernel_size=(size, 1), padding=(size // 2, 0))
        self.project_out = linear()
        self.norm_out = nnx.data(None if norm is None else norm(in_features, rngs=rngs))
        self.pool_size = pool_size
        self.activation_fn = activation_fn
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        check_features("ContextAnchorAttention", x, self.in_features)
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
        sow(self, "gate", gate)
        return apply_gate(x, gate)
