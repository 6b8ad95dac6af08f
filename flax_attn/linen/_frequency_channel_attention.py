"""Frequency channel attention as a Linen module."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._module import LayerModule
from flax_attn.vision import frequency_channel_attention_gate


class FrequencyChannelAttention(LayerModule, kw_only=True):
    """Frequency channel attention, `flax_attn.vision.frequency_channel_attention`.

    Parameters `reduce`, `expand`; the cosines are constants. Sows `gate` `[*B, 1, 1, C]`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.FrequencyChannelAttention().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 16
    hidden_features: int | None = None
    frequencies: int | Sequence[tuple[int, int]] = 16
    dct_size: int | tuple[int, int] = 7
    use_bias: bool = False
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = reduced_features(
            "FrequencyChannelAttention", features, self.reduction, self.hidden_features
        )
        gate = frequency_channel_attention_gate(
            x,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            self._dense(features, "expand", use_bias=self.use_bias),
            frequencies=self.frequencies,
            dct_size=self.dct_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
