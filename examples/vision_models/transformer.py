"""The block of a vision transformer, around any mixer of tokens or of places."""

import jax
from flax import nnx

from vision_models.layers import LayerNorm


class Mlp(nnx.Module):
    """The perceptron: y = fc2(GELU(fc1(x)))."""

    def __init__(self, features: int, hidden_features: int, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(features, hidden_features, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_features, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[*B, features]` to the same."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """Normalised first: y = x + attention(norm1(x)), z = y + mlp(norm2(y)).

    Args:
      features: Width of a token.
      attention: From tokens or a map to the same.
      mlp: Likewise.
      epsilon: Of the norms.
      rngs: Keys for the parameters.
    """

    def __init__(
        self,
        features: int,
        attention: nnx.Module,
        mlp: nnx.Module,
        *,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(features, epsilon=epsilon, rngs=rngs)
        self.attention = attention
        self.norm2 = LayerNorm(features, epsilon=epsilon, rngs=rngs)
        self.mlp = mlp

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[*B, features]` to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
