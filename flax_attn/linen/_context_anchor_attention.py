"""Context anchor attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import DetectorBatchNorm, with_phase
from flax_attn.vision import context_anchor_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class ContextAnchorAttention(Module, kw_only=True):
    """Context anchor attention, `flax_attn.vision.context_anchor_attention`.

    Parameters `project_in`, `norm_in`, `row`, `column`, `project_out`, `norm_out`; sows `gate`
    `[*B, H, W, C]`.

    Attributes:
      kernel_size: Length of the strips, odd; in the paper's networks it grows with the depth.
      pool_size: Width of the window of the mean, odd.
      use_bias: Whether the strips have biases, and the projections where nothing normalises them.
      norm: Makes each normalisation; by default batch normalisation as in the released code, with a
        momentum of 0.97 in Flax's sense, ε = 1e-3 and an exact variance. One of your own may know
        its phase: `functools.partial(nn.BatchNorm, use_running_average=not train)`. None for none:
        `norm=None, activation_fn=lambda u: u` is the form of the released networks.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      activation_fn: After each normalisation.
      gate_fn: From the context to the gate.
      dtype: dtype of the maps, as in Flax; `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> gate = linen.ContextAnchorAttention(use_running_average=True)
      >>> gate.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 11
    pool_size: int = 7
    use_bias: bool = True
    norm: Any = DetectorBatchNorm
    use_running_average: bool | None = None
    activation_fn: Activation = jax.nn.silu
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`. The phase is given here or before."""
        x = as_image("ContextAnchorAttention", x)
        features = x.shape[-1]
        size = check_odd("ContextAnchorAttention", self.kernel_size)
        norm = self.norm and with_phase(
            "ContextAnchorAttention", self.norm, self.use_running_average, use_running_average
        )
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        dense = functools.partial(
            Dense, features, use_bias=self.use_bias and norm is None, **settings
        )
        strip = functools.partial(
            Conv,
            features,
            feature_group_count=features,
            conv_general_dilated=convolve,
            use_bias=self.use_bias,
            **settings,
        )
        gate = context_anchor_attention_gate(
            x,
            dense(name="project_in"),
            norm and norm(name="norm_in"),
            strip(kernel_size=(1, size), padding=(0, size // 2), name="row"),
            strip(kernel_size=(size, 1), padding=(size // 2, 0), name="column"),
            dense(name="project_out"),
            norm and norm(name="norm_out"),
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
