"""The attention gate as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, Map, check_features, check_positive, reduced_features
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import attention_gate_gate
from flax_attn.vision._gates import apply_gate


class AttentionGate(Module):
    """The attention gate of Attention U-Net, `flax_attn.vision.attention_gate`.

    Parameters `theta`, `phi`, `psi` (and `theta_norm`, `phi_norm`, `psi_norm`); sows `gate`
    `[*B, H, W, 1]`.

    Args:
      in_features: C.
      gating_features: G, the channels of the gating signal, default C.
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      strides: By how much θ thins out the places; its kernel is as wide. The versions that
        normalise have 1.
      use_bias: Whether `phi` and `psi` have biases; `theta` has none, for that of `phi` is added.
      norm: Makes the normalisation of what each map returns, called as `norm(R, rngs=rngs)`, for
        example `nnx.BatchNorm`; None for none.
      activation_fn: After the sum.
      gate_fn: From the last map to the gate.
      dtype: dtype of the maps, as in Flax; the gate is resized in float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> x, gating = jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 24))
      >>> nnx.AttentionGate(16, gating_features=24, rngs=flax_nnx.Rngs(0))(x, gating).shape
      (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        gating_features: int | None = None,
        reduction: int = 2,
        hidden_features: int | None = None,
        strides: int = 2,
        use_bias: bool = True,
        norm: Callable[..., Any] | None = None,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("AttentionGate", in_features, reduction, hidden_features)
        check_positive("AttentionGate", "strides", strides)
        settings: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        linear = functools.partial(Linear, use_bias=use_bias, bias_init=bias_init, **settings)
        self.in_features = in_features
        self.gating_features = in_features if gating_features is None else gating_features
        self.theta = Conv(
            in_features,
            hidden,
            (strides, strides),
            strides=strides,
            padding=0,
            use_bias=False,
            **settings,
        )
        self.phi = linear(in_features=self.gating_features, out_features=hidden)
        self.psi = linear(in_features=hidden, out_features=1)
        self.theta_norm = nnx.data(None if norm is None else norm(hidden, rngs=rngs))
        self.phi_norm = nnx.data(None if norm is None else norm(hidden, rngs=rngs))
        self.psi_norm = nnx.data(None if norm is None else norm(1, rngs=rngs))
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array, gating: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]` by a signal `[*B, h, w, G]`."""
        check_features("AttentionGate", x, self.in_features)
        check_features("AttentionGate", gating, self.gating_features, "gating")
        gate = attention_gate_gate(
            x,
            gating,
            _normalised(self.theta, self.theta_norm),
            _normalised(self.phi, self.phi_norm),
            _normalised(self.psi, self.psi_norm),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        sow(self, "gate", gate)
        return apply_gate(x, gate)


def _normalised(layer: Map, norm: Map | None) -> Map:
    return layer if norm is None else lambda x: norm(layer(x))
