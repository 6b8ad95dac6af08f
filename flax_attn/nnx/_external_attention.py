"""External attention as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, check_positive
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import external_attention


class ExternalAttention(Module):
    """External attention, `flax_attn.vision.external_attention`.

    Parameters `query`, `key`, `value`, `out`, `norm`; `value` is initialised on its own, not as the
    transpose of `key`. Sows `attention_weights` `[*B, H, W, S]`.

    Args:
      in_features: C.
      memory_size: S, the number of memory slots.
      use_bias: If True, `query` has a bias; the other layers have none.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.ExternalAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        memory_size: int = 64,
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        check_positive("ExternalAttention", "memory_size", memory_size)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.linear(in_features, in_features, use_bias=use_bias)
        self.key = layers.linear(in_features, memory_size, use_bias=False)
        self.value = layers.linear(memory_size, in_features, use_bias=False)
        self.out = layers.linear(in_features, in_features, use_bias=False)
        self.norm = layers.norm(norm, in_features)
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend from the places of an image `[*B, H, W, C]` to the memory."""
        self._check(x)
        y, weights = external_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            norm=self.norm,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        self._sow("attention_weights", weights)
        return y
