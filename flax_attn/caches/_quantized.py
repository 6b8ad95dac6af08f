"""A cache that stores keys and values as 8-bit integers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

from flax_attn._checks import check_positive
from flax_attn._pytree import pytree, static
from flax_attn.caches._cache import Dtype, Heads, as_batch, new_fields, new_heads, no_tokens
from flax_attn.caches._contiguous import Contiguous

LARGEST = 127


@pytree
class Quantized:
    """Vectors as 8-bit integers with one scale each: x ≈ scale · values.

    Attributes:
      values: `[..., D]`.
      scales: max |x| / 127 of each vector `[...]`.
    """

    values: Int8[Array, "*X D"]
    scales: Float[Array, "*X"]

    @classmethod
    def of(cls, x: Float[Array, "*X D"]) -> "Quantized":
        """Round vectors to the nearest multiples of their scales. It has no derivative."""
        return cls(*_round(x.astype(jnp.float32)))

    def numbers(self, dtype: Dtype) -> Float[Array, "*X D"]:
        """scale · values."""
        return (self.values.astype(jnp.float32) * self.scales[..., None]).astype(dtype)


@jax.custom_jvp
def _round(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values and scales of vectors."""
    scales = jnp.max(jnp.abs(x), axis=-1, initial=0) / LARGEST
    divisor = jnp.where(scales > 0, scales, 1)[..., None]
    values = jnp.clip(jnp.round(x / divisor), -LARGEST, LARGEST)
    # The scale of a vector that is not finite is not finite, and neither is their product.
    return jnp.nan_to_num(values).astype(jnp.int8), scales


@_round.defjvp
def _round_jvp(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise NotImplementedError(
        "QuantizedCache: keys and values that are rounded to 8 bits have no derivative. Use "
        "KVCache, or jax.lax.stop_gradient(key) and (value)."
    )


@pytree
class QuantizedCache(Contiguous):
    """A cache of fixed capacity with 8-bit keys and values, a quarter of the memory of float32.

    Each vector, of one token and head, has a float32 scale of its own: x̂ = s · round(x / s) with
    s = max |x| / 127. So |x̂ − x| ≤ max |x| / 254 for every entry in float32; rounding to `dtype`
    comes on top (2⁻⁹ of an entry in bfloat16). A score q·k then changes by at
    most ‖q‖₁ max |k| / 254, and an output by the change of its weights and max |v| / 254.

    Make it by `QuantizedCache.create`. It takes keys and values of any floating dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import caches
      >>> cache = caches.QuantizedCache.create(16, num_kv_heads=2, head_dim=8)
      >>> cache = cache.append(jnp.ones((5, 2, 8)), jnp.ones((5, 2, 8)))
      >>> cache.keys.dtype, cache.stored_keys.values.dtype
      (dtype('float32'), dtype('int8'))
    """

    stored_keys: Quantized
    stored_values: Quantized
    fields: dict[str, Array]
    lengths: Int[Array, "*B"]
    overflowed: Bool[Array, "*B"]
    dtype: Dtype = static()

    @classmethod
    def create(
        cls,
        capacity: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        batch: int | tuple[int, ...] = (),
        value_head_dim: int | None = None,
        dtype: Dtype = jnp.float32,
        fields: Mapping[str, Dtype] | None = None,
    ) -> "QuantizedCache":
        """An empty cache.

        Args:
          capacity: S, how many tokens of a sequence can be stored.
          num_kv_heads: K.
          head_dim: D.
          batch: Batch axes `*B`: a number or several.
          value_head_dim: Dv; D by default. May be 0, for latent attention.
          dtype: dtype of the keys and values that attention reads.
          fields: Names and dtypes of the coordinates besides positions.

        Returns:
          A cache without tokens.

        Raises:
          ValueError: If a size is below 1, or `value_head_dim` below 0; if a field has the name of
            a coordinate that every cache has.
          TypeError: If a size is no whole number, `dtype` is not floating point, or `fields` is no
            mapping.
        """
        owner = "QuantizedCache.create"
        capacity = check_positive(owner, "capacity", capacity)
        heads = new_heads(owner, num_kv_heads, head_dim, value_head_dim, dtype)
        batch = as_batch(owner, batch)
        keys, values = (
            Quantized(
                jnp.zeros((*batch, heads.num, capacity, size), jnp.int8),
                jnp.zeros((*batch, heads.num, capacity), jnp.float32),
            )
            for size in (heads.head_dim, heads.value_head_dim)
        )
        return cls(
            keys,
            values,
            new_fields(owner, fields, (*batch, capacity)),
            *no_tokens(batch),
            dtype=heads.dtype,
        )

    @property
    def _heads(self) -> Heads:
        keys, values = self.stored_keys.values, self.stored_values.values
        return Heads(keys.shape[-3], keys.shape[-1], values.shape[-1], None, None)

    def _pack(self, rows: jax.Array) -> Quantized:
        return Quantized.of(rows)

    def _read(self, store: Quantized) -> jax.Array:
        return jnp.swapaxes(store.numbers(self.dtype), -3, -2)
