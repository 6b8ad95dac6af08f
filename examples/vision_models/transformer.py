"""The block of a vision transformer, with any attention over tokens or feature maps."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vision_models.layers import LayerNorm

GELU = functools.partial(jax.nn.gelu, approximate=False)


class Mlp(nnx.Module):
    """The MLP: y = fc2(δ(fc1(x)))."""

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        activation_fn: Callable[[jax.Array], jax.Array] = GELU,
        rngs: nnx.Rngs,
    ):
        self.fc1 = nnx.Linear(features, hidden_features, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_features, features, rngs=rngs)
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[*B, features]` to the same."""
        return self.fc2(self.activation_fn(self.fc1(x)))


class Block(nnx.Module):
    """A pre-normalised block: y = shortcut(x) + attention(norm1(x)), z = y + mlp(norm2(y)).

    Args:
      features: Width of a token.
      attention: Map from tokens or a feature map to the same.
      mlp: Map from tokens or a feature map to the same.
      in_features: Width of a token before the attention. Default: `features`.
      shortcut: Map of x, if the output of the attention has another shape.
      norm: Makes the norms, called as `norm(features, epsilon=epsilon, rngs=rngs)`.
      epsilon: ε of the norms.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        features: int,
        attention: nnx.Module,
        mlp: nnx.Module,
        *,
        in_features: int | None = None,
        shortcut: Callable[[jax.Array], jax.Array] = nnx.identity,
        norm: Callable[..., nnx.Module] = LayerNorm,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        self.norm1 = norm(in_features or features, epsilon=epsilon, rngs=rngs)
        self.attention = attention
        self.shortcut = shortcut
        self.norm2 = norm(features, epsilon=epsilon, rngs=rngs)
        self.mlp = mlp

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[*B, in_features]` to `[*B, features]`."""
        x = self.shortcut(x) + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def with_class_token(x: jax.Array, class_token: jax.Array) -> jax.Array:
    """The class token `[1, 1, M]`, followed by the feature map `[B, H, W, M]` row by row."""
    first = jnp.broadcast_to(class_token, (x.shape[0], 1, x.shape[-1]))
    return jnp.concatenate([first, x.reshape(x.shape[0], -1, x.shape[-1])], axis=1)
