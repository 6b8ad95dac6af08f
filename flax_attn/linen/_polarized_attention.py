"""Polarized self-attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.vision import polarized_attention_gate
from flax_attn.vision._polarized_attention import Layout, polarized_attention_features


class PolarizedAttention(LayerModule, kw_only=True):
    """Polarized self-attention, `flax_attn.vision.polarized_attention`.

    Parameters `channel_query`, `channel_value`, `channel_expand`, `spatial_query`, `spatial_value`,
    and `channel_norm` if there is one. Sows `gate` `[*B, H, W, C]`.

    Attributes:
      reduction: R = C / reduction, a whole number.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.
      norm: Makes the normalisation of the channels before their gate, for example
        `functools.partial(nn.LayerNorm, epsilon=1e-5)`; None for none.

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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = polarized_attention_features(features, self.reduction, self.hidden_features)
        gate = polarized_attention_gate(
            x,
            self._dense(1, "channel_query", use_bias=self.use_bias),
            self._dense(hidden, "channel_value", use_bias=self.use_bias),
            self._dense(features, "channel_expand", use_bias=self.use_bias),
            self._dense(hidden, "spatial_query", use_bias=self.use_bias),
            self._dense(hidden, "spatial_value", use_bias=self.use_bias),
            channel_norm=None if self.norm is None else self.norm(name="channel_norm"),
            layout=self.layout,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
