"""Functions whose derivatives are arithmetic, for `elementwise`.

XLA for CPUs fuses arithmetic into the sums of gradients. It stores comparisons, and constants that
are broadcast to an image, as images. SimAM with `jax.nn.sigmoid` needs 1 image more in float32 and
4 in bfloat16 (jaxlib 0.10.2 and 0.12.0). So the constants are arguments here, which `elementwise`
passes.
"""

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.switch import is_enabled

Number = jax.Array | float


def sigmoid(x: jax.Array, one: Number) -> jax.Array:
    """σ(x) = 1 / (1 + exp(−x)), with the derivative σ − σ²."""
    return _sigmoid(x, one) if is_enabled() else jax.nn.sigmoid(x)


@jax.custom_jvp
def _sigmoid(x: jax.Array, one: Number) -> jax.Array:
    return one / (one + jnp.exp(-x))


@_sigmoid.defjvp
def _sigmoid_jvp(
    primals: tuple[jax.Array, Number], tangents: tuple[jax.Array, Number]
) -> tuple[jax.Array, jax.Array]:
    y = _sigmoid(*primals)
    return y, (y - y * y) * tangents[0]


def larger(a: jax.Array, b: jax.Array, half: Number) -> jax.Array:
    """max(a, b). A tie shares the gradient."""
    return _larger(a, b, half) if is_enabled() else jnp.maximum(a, b)


@jax.custom_jvp
def _larger(a: jax.Array, b: jax.Array, half: Number) -> jax.Array:
    del half
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(
    primals: tuple[jax.Array, jax.Array, Number], tangents: tuple[jax.Array, jax.Array, Number]
) -> tuple[jax.Array, jax.Array]:
    (a, b, half), (da, db, _) = primals, tangents
    sign = lax.stop_gradient(jnp.sign(a - b))  # 1 for a, −1 for b, 0 for a tie
    return _larger(a, b, half), half * (da + db + sign * (da - db))
