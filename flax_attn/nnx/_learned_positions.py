"""Learned positions as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn.nnx._module import Module
from flax_attn.positions import learned


class LearnedPositions(Module):
    """A table of learned positions, `flax_attn.positions.learned`.

    Parameter `embedding` `[P, M]`, named as in Flax's `Embed`.

    Args:
      max_length: P, the number of positions.
      features: M, the width of the encoding.
      dtype: dtype of the encoding; None takes the table's.
      param_dtype: dtype of the table.
      embedding_init: Initializer of the table.
      rngs: Keys for the table.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.LearnedPositions(16, 8, rngs=flax_nnx.Rngs(0))(jnp.arange(10)).shape
      (10, 8)
    """

    def __init__(
        self,
        max_length: int,
        features: int,
        *,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        embedding_init: Initializer = nnx.initializers.normal(0.02),
        rngs: nnx.Rngs,
    ):
        shape = (max_length, features)
        self.embedding = nnx.Param(embedding_init(rngs.params(), shape, param_dtype))
        self.dtype = dtype

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Look up positions `[*T]`; returns `[*T, M]`."""
        table = self.embedding[...]
        return learned(positions, table if self.dtype is None else table.astype(self.dtype))
