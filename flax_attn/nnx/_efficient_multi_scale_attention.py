"""Efficient multi-scale attention as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, check_odd, group_features
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import efficient_multi_scale_attention_gate
from flax_attn.vision._gates import apply_gate


class EfficientMultiScaleAttention(Module):
    """Efficient multi-scale attention, `flax_attn.vision.efficient_multi_scale_attention`.

    Parameters `pointwise`, `norm_scale`, `norm_bias`, `conv`, shared by all groups; sows `gate`
    `[*B, H, W, C]`.

    Args:
      in_features: C.
      groups: Number of groups of consecutive channels, of which C is a multiple.
      kernel_size: Width of the spatial kernel, odd.
      use_bias: Whether the two convolutions have biases.
      epsilon: ε of the normalisation, added to the variance.
      gate_fn: σ.
      dtype: dtype of the convolutions, as in Flax; the pooled statistics and the normalisation are
        float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> module = nnx.EfficientMultiScaleAttention(64, rngs=flax_nnx.Rngs(0))
      >>> module(jnp.ones((2, 7, 7, 64))).shape
      (2, 7, 7, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        groups: int = 32,
        kernel_size: int = 3,
        use_bias: bool = True,
        epsilon: float = 1e-5,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        part = group_features("EfficientMultiScaleAttention", in_features, groups)
        size = check_odd("EfficientMultiScaleAttention", kernel_size)
        settings: dict[str, Any] = {
            "use_bias": use_bias,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "rngs": rngs,
        }
        self.pointwise = Linear(part, part, **settings)
        self.norm_scale = nnx.Param(jnp.ones(part, param_dtype))
        self.norm_bias = nnx.Param(jnp.zeros(part, param_dtype))
        self.conv = Conv(part, part, (size, size), padding=size // 2, **settings)
        self.epsilon = epsilon
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        check_features("EfficientMultiScaleAttention", x, self.in_features)
        gate = efficient_multi_scale_attention_gate(
            x,
            self.pointwise,
            self.norm_scale[...],
            self.norm_bias[...],
            self.conv,
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)
