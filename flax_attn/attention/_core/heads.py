"""Query heads that share a key head, as rows of one matrix.

Dot products then need neither repeated keys nor transposed scores.
"""

import jax


def stack_groups(heads: jax.Array, num_kv_heads: int) -> jax.Array:
    """The G query heads of each key head as rows: `[*B, N, T, X]` -> `[*B, K, G T, X]`."""
    *batch, num_heads, length, features = heads.shape
    groups = num_heads // num_kv_heads
    return heads.reshape(*batch, num_kv_heads, groups * length, features)


def unstack_groups(rows: jax.Array, num_heads: int) -> jax.Array:
    """The inverse of `stack_groups`: `[*B, K, G T, X]` -> `[*B, N, T, X]`."""
    *batch, num_kv_heads, stacked, features = rows.shape
    groups = num_heads // num_kv_heads
    return rows.reshape(*batch, num_heads, stacked // groups, features)
