"""Writing tokens to the slots of a cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flax_attn._cpu.barriers import separate
from flax_attn.caches._cache import Store


def write(store: Store, rows: Store, slots: jax.Array) -> Store:
    """Write the rows of tokens to their slots. Slots beyond the end are dropped.

    Args:
      store: Arrays `[*B, K, S, ...]`.
      rows: Arrays `[*B, T, K, ...]`.
      slots: `[*B, T]`.
    """

    def one_sequence(old: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
        return old.at[:, slots].set(jnp.moveaxis(new, 0, 1), mode="drop")

    written = jax.tree.map(lambda old, new: _over_batch(one_sequence, old, new, slots), store, rows)
    # Otherwise XLA for CPUs writes a cache of one sequence twice, as a result and as an operand of
    # attention, and copies it for that eight times (512 tokens: 1.7 times as long a step with
    # jaxlib 0.12.0). In jaxlib 0.10.2 the barrier has no effect.
    leaves, tree = jax.tree.flatten(written)
    return jax.tree.unflatten(tree, separate(*leaves))


def write_fields(
    fields: dict[str, jax.Array], new: dict[str, jax.Array], slots: jax.Array
) -> dict[str, jax.Array]:
    """Write the coordinates of tokens `[*B, T]` to their slots."""

    def one_sequence(old: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
        return old.at[slots].set(new, mode="drop")

    return {name: _over_batch(one_sequence, old, new[name], slots) for name, old in fields.items()}


def _over_batch(
    function: Callable[..., jax.Array], old: jax.Array, new: jax.Array, slots: jax.Array
) -> jax.Array:
    for _ in range(slots.ndim - 1):
        function = jax.vmap(function)
    return function(old, new, slots)
