"""Polarized self-attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_multiple, reduced_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.vision import polarized_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._polarized_attention import Layout


class PolarizedAttention(Module, kw_only=True):
    """Polarized self-attention, `flax_attn.vision.polarized_attention`.

    Parameters `channel_query`, `channel_value`, `channel_expand` (and `channel_norm`),
    `spatial_query`, `spatial_value`; sows `gate` `[*B, H, W, C]`.

    Attributes:
      layout: `"parallel"` or `"sequential"`.
      reduction: R = C / reduction, a whole number.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the five maps have biases.
      norm: Makes the normalisation of the channels before their gate, for example
        `functools.partial(nn.LayerNorm, epsilon=1e-5)`; None for none.
      gate_fn: From the attended values to the gates.
      dtype: dtype of the maps, as in Flax; softmaxes and sums are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.PolarizedAttention().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    layout: Layout = "parallel"
    reduction: int = 2
    hidden_features: int | None = None
    use_bias: bool = False
    norm: Any = None
    gate_fn: Activation = jax.nn.sigmoid
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = as_image("PolarizedAttention", x)
        features = x.shape[-1]
        hidden = reduced_features(
            "PolarizedAttention", features, self.reduction, self.hidden_features
        )
        if self.hidden_features is None:
            check_multiple("PolarizedAttention", "C", features, "reduction", self.reduction)
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        gate = polarized_attention_gate(
            x,
            dense(1, name="channel_query"),
            dense(hidden, name="channel_value"),
            dense(features, name="channel_expand"),
            dense(hidden, name="spatial_query"),
            dense(hidden, name="spatial_value"),
            channel_norm=None if self.norm is None else self.norm(name="channel_norm"),
            layout=self.layout,
            gate_fn=self.gate_fn,
        )
        self.sow("intermediates", "gate", gate)
        return apply_gate(x, gate)
