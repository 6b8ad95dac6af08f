"""Gates applied to images.

The arguments broadcast to the image: they have size 1 where they are constant. Results have the
dtype of the image, and gradients of gates are summed in at least float32.
"""

import functools

import jax
import jax.numpy as jnp

from flax_attn._cpu.elementwise import elementwise


@elementwise
def apply_gate(x: jax.Array, *gates: jax.Array) -> jax.Array:
    """x ⊙ g₁ ⊙ g₂ ..."""
    return functools.reduce(jnp.multiply, gates, x)


@elementwise
def apply_gate_sum(x: jax.Array, *gates: jax.Array) -> jax.Array:
    """x ⊙ (g₁ + g₂ + ...)."""
    return x * functools.reduce(jnp.add, gates)


@elementwise
def gate_sum(x: jax.Array, *gates: jax.Array) -> jax.Array:
    """g₁ + g₂ + ..., broadcast to x."""
    del x
    return functools.reduce(jnp.add, gates)


@elementwise
def add(x: jax.Array, term: jax.Array) -> jax.Array:
    """x + t."""
    return x + term
