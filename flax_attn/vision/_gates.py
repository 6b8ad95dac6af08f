"""What multiplies an image by gates, and adds to it."""

import functools

import jax
import jax.numpy as jnp

from flax_attn._cpu.elementwise import elementwise


@elementwise
def apply_gate(x: jax.Array, *gates: jax.Array) -> jax.Array:
    """x ⊙ g₁ ⊙ g₂ ..."""
    return functools.reduce(jnp.multiply, gates, x)


add = elementwise(lambda x, term: x + term)
apply_sum = elementwise(lambda x, *gates: x * functools.reduce(jnp.add, gates))
gate_sum = elementwise(lambda x, *gates: functools.reduce(jnp.add, gates))
