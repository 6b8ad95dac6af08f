"""The attention gate as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, Map, check_positive, reduced_features
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.vision import attention_gate_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class AttentionGate(Module, kw_only=True):
    """The attention gate of Attention U-Net, `flax_attn.vision.attention_gate`.

    Parameters `theta`, `phi`, `psi` (and `theta_norm`, `phi_norm`, `psi_norm`); sows `gate`
    `[*B, H, W, 1]`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      strides: By how much θ thins out the places; its kernel is as wide. The versions that
        normalise have 1.
      use_bias: Whether `phi` and `psi` have biases; `theta` has none, for that of `phi` is added.
      norm: Makes the normalisation of what each map returns, for example
        `functools.partial(nn.BatchNorm, use_running_average=not train)`; None for none.
      activation_fn: After the sum.
      gate_fn: From the last map to the gate.
      dtype: dtype of the maps, as in Flax; the gate is resized in float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x, gating = jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 24))
      >>> linen.AttentionGate().init_with_output(jax.random.key(0), x, gating)[0].shape
      (2, 8, 8, 16)
    """

    reduction: int = 2
    hidden_features: int | None = None
    strides: int = 2
    use_bias: bool = True
    norm: Any = None
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, gating: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]` by a signal `[*B, h, w, G]`."""
        x = as_image("AttentionGate", x)
        hidden = reduced_features(
            "AttentionGate", x.shape[-1], self.reduction, self.hidden_features
        )
        check_positive("AttentionGate", "strides", self.strides)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
        }
        dense = functools.partial(
            Dense, use_bias=self.use_bias, bias_init=self.bias_init, **settings
        )
        theta = Conv(
            hidden,
            (self.strides, self.strides),
            strides=self.strides,
            padding=0,
            use_bias=False,
            name="theta",
            **settings,
        )
        gate = attention_gate_gate(
            x,
            gating,
            self._normalised(theta),
            self._normalised(dense(features=hidden, name="phi")),
            self._normalised(dense(features=1, name="psi")),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)

    def _normalised(self, layer: nn.Module) -> Map:
        if self.norm is None:
            return layer
        norm = self.norm(name=f"{layer.name}_norm")
        return lambda x: norm(layer(x))
