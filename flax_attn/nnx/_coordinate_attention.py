"""Coordinate attention as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, reduced_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision import coordinate_attention_gate
from flax_attn.vision._gates import apply_gate


class CoordinateAttention(Module):
    """Coordinate attention, `flax_attn.vision.coordinate_attention`.

    Parameters `reduce`, `norm`, `expand_height`, `expand_width`; sows `gate`, the pair
    `[*B, H, 1, C]`, `[*B, 1, W, C]`.

    Args:
      in_features: C.
      reduction: R = max(min_features, C // reduction).
      min_features: The least R by the reduction.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the three maps have biases.
      norm: Makes the normalisation, called as `norm(R, rngs=rngs)`.
      activation_fn: After the normalisation.
      gate_fn: From the expanded statistics to the gates.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.CoordinateAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 32,
        min_features: int = 8,
        hidden_features: int | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.hard_swish,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features(
            "CoordinateAttention", in_features, reduction, hidden_features, least=min_features
        )
        linear = functools.partial(
            Linear,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.reduce = linear(in_features, hidden)
        self.norm = norm(hidden, rngs=rngs)
        self.expand_height = linear(hidden, in_features)
        self.expand_width = linear(hidden, in_features)
        self.activation_fn = activation_fn
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        check_features("CoordinateAttention", x, self.in_features)
        gates = coordinate_attention_gate(
            x,
            self.reduce,
            self.norm,
            self.expand_height,
            self.expand_width,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gates)
        return apply_gate(x, *gates)
