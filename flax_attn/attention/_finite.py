"""Keeping NaN and infinity behind a mask.

0 · NaN is NaN, so a weight of 0 is not enough, forward or backward. Instead the dot products read 0
for what is not finite, and the output of the rows that see such a thing is set to NaN.
"""

import jax
import jax.numpy as jnp


def finite(array: jax.Array) -> jax.Array:
    """The array with 0 for what is not finite."""
    return jnp.where(jnp.isfinite(array), array, 0)


def not_finite(array: jax.Array) -> jax.Array:
    """Which vectors along the last axis hold NaN or infinity."""
    return ~jnp.all(jnp.isfinite(array), axis=-1)


def undefined_rows(visible: jax.Array, bad_query: jax.Array, bad_key: jax.Array) -> jax.Array:
    """The queries that are not finite, or see a key that is not, and see anything at all.

    Args:
      visible: Who sees whom `[*B, N, T, S]`, with axes of size 1 where nothing varies.
      bad_query: Which queries are not finite `[*B, N, T]`.
      bad_key: Which keys or values are not finite `[*B, N, S]`.

    Returns:
      True for those queries `[*B, N, T]`.
    """
    sees_any = jnp.any(visible, axis=-1)
    visible = jnp.broadcast_to(visible, (*visible.shape[:-1], bad_key.shape[-1]))
    # As a dot product, counting, the pairs of all heads need not exist at once.
    letters = "ts" if visible.shape[-3] == 1 else "nts"
    if visible.shape[-3] == 1:
        visible = visible[..., 0, :, :]
    if all(size == 1 for size in visible.shape[: -len(letters)]):
        visible = visible.reshape(visible.shape[-len(letters) :])
    count = jnp.einsum(
        f"...{letters},...ns->...nt", visible.astype(jnp.float32), bad_key.astype(jnp.float32)
    )
    return (count > 0) | (bad_query & sees_any)
