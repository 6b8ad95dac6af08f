"""Functions whose derivatives are arithmetic, for `elementwise`.

XLA for CPUs fuses arithmetic into the sums of gradients. It stores comparisons, and constants that
are broadcast to an image, as images (jaxlib 0.10.2 to 0.12.0). So constants are arguments here:
those of `elementwise`.
"""

import jax
import jax.numpy as jnp
from jax import lax

Number = jax.Array | float


@jax.custom_jvp
def sigmoid(x: jax.Array, one: Number) -> jax.Array:
    """σ(x) = 1 / (1 + exp(−x)), with the derivative σ − σ²."""
    return one / (one + jnp.exp(-x))


@sigmoid.defjvp
def _sigmoid_jvp(
    primals: tuple[jax.Array, Number], tangents: tuple[jax.Array, Number]
) -> tuple[jax.Array, jax.Array]:
    y = sigmoid(*primals)
    return y, (y - y * y) * tangents[0]


@jax.custom_jvp
def larger(a: jax.Array, b: jax.Array, half: Number) -> jax.Array:
    """max(a, b), of which a tie shares the gradient."""
    return jnp.maximum(a, b)


@larger.defjvp
def _larger_jvp(
    primals: tuple[jax.Array, jax.Array, Number], tangents: tuple[jax.Array, jax.Array, Number]
) -> tuple[jax.Array, jax.Array]:
    (a, b, half), (da, db, _) = primals, tangents
    sign = lax.stop_gradient(jnp.sign(a - b))  # 1 for a, −1 for b, 0 for a tie
    return larger(a, b, half), half * (da + db + sign * (da - db))
