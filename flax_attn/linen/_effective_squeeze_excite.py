"""Effective squeeze-and-excitation as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import effective_squeeze_excite_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class EffectiveSqueezeExcite(Module, kw_only=True):
    """Effective squeeze-and-excitation, `flax_attn.vision.effective_squeeze_excite`.

    Parameters `project`; sows `gate` `[*B, 1, 1, C]`.

    Attributes:
      use_bias: Whether the map has a bias.
      gate_fn: From the projected statistics to the gate.
      dtype: dtype of the map, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.EffectiveSqueezeExcite().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    use_bias: bool = True
    gate_fn: Activation = jax.nn.hard_sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = as_image("EffectiveSqueezeExcite", x)
        project = Dense(
            x.shape[-1],
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="project",
        )
        gate = effective_squeeze_excite_gate(x, project, gate_fn=self.gate_fn)
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
