"""Criss-cross attention as an NNX module."""

import functools
from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import criss_cross_attention


class CrissCrossAttention(Module):
    """Criss-cross attention, `flax_attn.vision.criss_cross_attention`.

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
      >>> nnx.CrissCrossAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 8,
        hidden_features: int | None = None,
        recurrence: int = 2,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = reduced_features("CrissCrossAttention", in_features, reduction, hidden_features)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.linear(in_features, hidden, use_bias=use_bias)
        self.key = layers.linear(in_features, hidden, use_bias=use_bias)
        self.value = layers.linear(in_features, in_features, use_bias=use_bias)
        self.gamma = layers.constant(0)
        self.recurrence = recurrence

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from each place of an image `[*B, H, W, C]` to its row and column.

        With `sow_weights`, sows `attention_weights` `[*B, H, W, H + W]` of each step.
        """
        self._check(x)
        attend = functools.partial(
            criss_cross_attention,
            x,
            self.query,
            self.key,
            self.value,
            self.gamma[...],
            recurrence=self.recurrence,
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        self._sow_on_request("attention_weights", weights)
        return y
