"""DANet's position attention as an NNX module."""

import functools
from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import position_attention


class PositionAttention(Module):
    """DANet's position attention, `flax_attn.vision.position_attention`.

    Parameters `query`, `key`, `value`, and the number `gamma`, which starts at 0, so that the
    module starts as the identity.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.PositionAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 8,
        hidden_features: int | None = None,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = reduced_features("PositionAttention", in_features, reduction, hidden_features)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.linear(in_features, hidden, use_bias=use_bias)
        self.key = layers.linear(in_features, hidden, use_bias=use_bias)
        self.value = layers.linear(in_features, in_features, use_bias=use_bias)
        self.gamma = layers.constant(0)

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within `[*B, H, W, C]`; may sow `attention_weights` `[*B, H·W, H·W]`."""
        self._check(x)
        attend = functools.partial(
            position_attention, x, self.query, self.key, self.value, self.gamma[...]
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        self._sow_on_request("attention_weights", weights)
        return y
