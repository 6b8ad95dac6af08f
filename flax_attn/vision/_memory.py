"""Scaling an image, and reading it several times, without keeping copies of it."""

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype


def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays for a second use, which XLA for CPUs computes apart from the first.

    Otherwise it stores what both need, though it be as large as an image and cheap to compute:
    gates that are broadcast, an image of bfloat16 as one of float32.
    """
    return lax.platform_dependent(*arrays, cpu=_barrier, default=_identity)


def _barrier(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return lax.optimization_barrier(arrays)


def _identity(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return arrays


def again(x: jax.Array, *after: jax.Array) -> jax.Array:
    """The image, to be read once more, after others were computed; see `apart`.

    One whose dtype needs no conversion is left to XLA.
    """
    return x if statistics_dtype(x.dtype) == x.dtype else apart(x, *after)[0]


@jax.custom_jvp
def apply_gate(x: jax.Array, *gates: jax.Array) -> jax.Array:
    """x ⊙ g₁ ⊙ g₂ ..., of gates in the dtype of x whose axes have size 1 where they are constant.

    Reverse mode sums the gradient of a gate in at least float32, which JAX's own does not, and
    keeps nothing but x and the gates.
    """
    for gate in gates:
        x = x * gate
    return x


@apply_gate.defjvp
def _apply_gate_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    (x, *gates), (dx, *dgates) = primals, tangents
    dtype = statistics_dtype(x.dtype)
    change, seen, factors = jnp.zeros_like(x), x, gates
    for i, dgate in enumerate(dgates):
        seen, factors = again(seen, *factors), list(apart(*factors))
        wide = jnp.broadcast_to(dgate.astype(dtype), x.shape)  # whose transpose is a sum
        term = apply_gate(seen, *factors[:i], *factors[i + 1 :]) * wide.astype(x.dtype)
        change = again(change + term)
    return apply_gate(x, *gates), apply_gate(dx, *gates) + change
