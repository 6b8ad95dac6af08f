"""The non-local block as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import ZeroBatchNorm
from flax_attn.vision import non_local


class NonLocal(Module):
    """The non-local block, `flax_attn.vision.non_local`.

    Parameters `query`, `key`, `value`, `out`, `norm`.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.
      norm: As in all modules that normalise; by default its scale starts at 0, so that the block
        starts as the identity.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.NonLocal(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 2,
        hidden_features: int | None = None,
        subsample: int = 1,
        scale: float | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = ZeroBatchNorm,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = reduced_features("NonLocal", in_features, reduction, hidden_features)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.linear(in_features, hidden, use_bias=use_bias)
        self.key = layers.linear(in_features, hidden, use_bias=use_bias)
        self.value = layers.linear(in_features, hidden, use_bias=use_bias)
        self.out = layers.linear(hidden, in_features, use_bias=use_bias)
        self.norm = layers.norm(norm, in_features)
        self.subsample = subsample
        self.scale = scale

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend from place to place of an image `[*B, H, W, C]`.

        With `sow_weights`, sows `attention_weights` `[*B, H·W, H'·W']`.
        """
        self._check(x)
        attend = functools.partial(
            non_local,
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            norm=self.norm,
            subsample=self.subsample,
            scale=self.scale,
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        self._sow_on_request("attention_weights", weights)
        return y
