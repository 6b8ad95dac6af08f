"""Coordinate attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import BatchNorm, default_norm, with_phase
from flax_attn.vision import coordinate_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class CoordinateAttention(Module, kw_only=True):
    """Coordinate attention, `flax_attn.vision.coordinate_attention`.

    Parameters `reduce`, `norm`, `expand_height`, `expand_width`; sows `gate`, the pair
    `[*B, H, 1, C]`, `[*B, 1, W, C]`.

    Attributes:
      reduction: R = max(min_features, C // reduction).
      min_features: The least R by the reduction.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the three maps have biases.
      norm: Makes the normalisation; by default batch normalisation with PyTorch's momentum and an
        exact variance. One of your own may know its phase:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      activation_fn: After the normalisation.
      gate_fn: From the expanded statistics to the gates.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> gate = linen.CoordinateAttention(use_running_average=True)
      >>> gate.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 32
    min_features: int = 8
    hidden_features: int | None = None
    use_bias: bool = True
    norm: Any = default_norm(BatchNorm)
    use_running_average: bool | None = None
    activation_fn: Activation = jax.nn.hard_swish
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`. The phase is given here or before."""
        x = as_image("CoordinateAttention", x)
        features = x.shape[-1]
        hidden = reduced_features(
            "CoordinateAttention",
            features,
            self.reduction,
            self.hidden_features,
            least=self.min_features,
        )
        norm = with_phase(
            "CoordinateAttention", self.norm, self.use_running_average, use_running_average
        )
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        gates = coordinate_attention_gate(
            x,
            dense(hidden, name="reduce"),
            norm(name="norm"),
            dense(features, name="expand_height"),
            dense(features, name="expand_width"),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gates)
        return apply_gate(x, *gates)
