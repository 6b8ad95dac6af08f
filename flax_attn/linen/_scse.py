"""scSE as a Linen module."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision._checks import as_image
from flax_attn.vision._scse import Combine, scse_and_gate


class SCSE(Module, kw_only=True):
    """Concurrent spatial and channel squeeze-and-excitation, `flax_attn.vision.scse`.

    Parameters `reduce`, `expand`, `project`; sows `gate` `[*B, H, W, C]`, both gates joined.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      combine: `"max"` as in the released code, `"add"` as in the paper.
      use_bias: Whether the three maps have biases.
      activation_fn: Between `reduce` and `expand`.
      gate_fn: From what the maps return to both gates.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.SCSE().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 2
    hidden_features: int | None = None
    combine: Combine = "max"
    use_bias: bool = True
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels and the places of an image `[*B, H, W, C]`."""
        x = as_image("SCSE", x)
        features = x.shape[-1]
        hidden = reduced_features("SCSE", features, self.reduction, self.hidden_features)
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        y, gate = scse_and_gate(
            x,
            dense(hidden, name="reduce"),
            dense(features, name="expand"),
            dense(1, name="project", dot_general=dot_of_one),
            self.combine,
            self.activation_fn,
            self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return y
