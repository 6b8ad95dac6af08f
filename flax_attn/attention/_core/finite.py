"""Keep NaN and infinity behind a mask.

0 · NaN is NaN, so a weight of 0 is not enough, forward or backward. Instead the dot products read 0
for what is not finite, and the output of the queries that see such a value is set to NaN.
"""

import jax
import jax.numpy as jnp


def finite(array: jax.Array) -> jax.Array:
    """The array with 0 for what is not finite."""
    return jnp.where(jnp.isfinite(array), array, 0)


def not_finite(array: jax.Array) -> jax.Array:
    """Which vectors along the last axis hold NaN or infinity."""
    return ~jnp.isfinite(jnp.max(jnp.abs(array), axis=-1))  # one sweep; a maximum keeps NaN


def sees(visible: jax.Array, *bad_keys: jax.Array) -> list[jax.Array]:
    """Which queries see a flagged key, for each array of flags.

    Args:
      visible: Which pairs are visible `[*B, N, T, S]`, with axes of size 1 where nothing varies.
      *bad_keys: Which keys are bad `[*B, N, S]`.

    Returns:
      True for those queries `[*B, N, T]`, for each kind.
    """
    if visible.shape[-3] > 1:
        return [jnp.any(visible & bad_key[..., :, None, :], axis=-1) for bad_key in bad_keys]
    # One relation for all heads: count by a dot product, without the pairs of every head.
    shape = (*visible.shape[:-3], visible.shape[-2], bad_keys[0].shape[-1])
    visible_BTS = jnp.broadcast_to(visible[..., 0, :, :], shape)
    if all(size == 1 for size in shape[:-2]):
        visible_BTS = visible_BTS.reshape(shape[-2:])
    counts = (array.astype(jnp.float32) for array in (visible_BTS, jnp.stack(bad_keys)))
    seen = jnp.einsum(f"{'...' * (visible_BTS.ndim > 2)}ts,...ns->...nt", *counts) > 0
    return list(seen)
