"""Additive attention and learned positions, as Linen modules."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn.attention import additive_attention
from flax_attn.linen._module import LayerModule, Module
from flax_attn.positions import learned


class AdditiveAttention(LayerModule):
    """Additive (Bahdanau) attention; see `flax_attn.nnx.AdditiveAttention`.

    Example:
      >>> q, k, v = jnp.ones((2, 1, 20)), jnp.ones((2, 10, 2)), jnp.ones((2, 10, 4))
      >>> attention = linen.AdditiveAttention(hidden_features=8)
      >>> attention.init_with_output(key, q, k, v)[0].shape
      (2, 1, 4)
    """

    hidden_features: int  # type: ignore[misc]  # mypy overlooks kw_only below
    use_bias: bool = dataclasses.field(default=False, kw_only=True)

    @nn.compact
    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, *, mask: jax.Array | None = None
    ) -> Any:
        output, weights = additive_attention(
            query,
            key,
            value,
            self._dense(self.hidden_features, "query"),
            self._dense(self.hidden_features, "key"),
            self._dense(1, "score"),
            mask=mask,
            return_weights=True,
        )
        return self._sown(output, attention_weights=weights)


class LearnedPositions(Module):
    """A table of learned positions; see `flax_attn.nnx.LearnedPositions`.

    Example:
      >>> table = linen.LearnedPositions(max_length=16, features=8)
      >>> table.init_with_output(key, jnp.arange(10))[0].shape
      (10, 8)
    """

    max_length: int
    features: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    embedding_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        shape = (self.max_length, self.features)
        table = self.param("embedding", self.embedding_init, shape, self.param_dtype)
        return learned(positions, table if self.dtype is None else table.astype(self.dtype))
