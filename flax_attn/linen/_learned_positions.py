"""Learned positions as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn.linen._module import Module
from flax_attn.positions import learned


class LearnedPositions(Module):
    """A table of learned positions, `flax_attn.positions.learned`.

    Parameter `embedding` `[P, M]`, named as in Flax's `Embed`.

    Attributes:
      max_length: P, the number of positions.
      features: M, the width of the encoding.
      dtype: dtype of the encoding; that of the table by default.
      param_dtype: dtype of the table.
      embedding_init: Initializer of the table.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> table = linen.LearnedPositions(max_length=16, features=8)
      >>> table.init_with_output(jax.random.key(0), jnp.arange(10))[0].shape
      (10, 8)
    """

    max_length: int
    features: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    embedding_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        """Look up positions `[*T]`; returns `[*T, M]`."""
        shape = (self.max_length, self.features)
        table = self.param("embedding", self.embedding_init, shape, self.param_dtype)
        return learned(positions, table if self.dtype is None else table.astype(self.dtype))
