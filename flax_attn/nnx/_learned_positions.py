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
      dtype: dtype of the encoding; that of the table by default.
      param_dtype: dtype of the table.
      embedding_init: Initializer of the table.
      rngs: Keys of the parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> table = nnx.LearnedPositions(16, 8, rngs=flax_nnx.Rngs(0))
      >>> table(jnp.arange(10)).shape
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
        super().__init__(None)
        layers = self._layers(rngs, param_dtype=param_dtype)
        self.embedding = layers.param(embedding_init, max_length, features)
        self.dtype = dtype

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Look up positions `[*T]`; returns `[*T, M]`."""
        table = self.embedding[...]
        return learned(positions, table if self.dtype is None else table.astype(self.dtype))
