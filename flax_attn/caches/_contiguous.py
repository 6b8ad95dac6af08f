"""A cache that stores the tokens of a sequence one after the other."""

from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flax_attn._checks import check_positive
from flax_attn._pytree import pytree
from flax_attn.caches._cache import (
    Cache,
    Dtype,
    as_batch,
    new_fields,
    new_heads,
    new_stores,
    no_tokens,
)
from flax_attn.caches._writing import write, write_fields
from flax_attn.coords import Coords


class Contiguous(Cache):
    """Token n of a sequence is stored in slot n."""

    @property
    def capacity(self) -> int:
        """How many tokens of a sequence can be stored."""
        return self.fields["positions"].shape[-1]

    @property
    def coords(self) -> Coords:
        """The coordinates of the keys `[*B, S]`; `valid` is True for the stored tokens."""
        slots = self._slot_numbers
        return Coords(**self.fields, valid=slots < self.lengths[..., None], numbers=slots)

    def append(
        self,
        key: Float[Array, "*B T K D"],
        value: Float[Array, "*B T K Dv"],
        coords: Coords | None = None,
    ) -> Self:
        """See `Cache.append`."""
        tokens = self._check_tokens(key, value, coords)
        lengths = self.lengths + tokens.counts
        fits = lengths <= self.capacity

        def message() -> str:
            return (
                f"{self._function('append')}: {int(np.max(tokens.counts))} tokens do not fit: the "
                f"cache holds {int(np.max(self.lengths))} tokens of at most capacity = "
                f"{self.capacity}. Create it with capacity={int(np.max(lengths))} or more, "
                f"or use RollingCache."
            )

        overflowed = self._check_fit(fits, message)
        is_written = tokens.is_stored & fits[..., None]
        slots = jnp.where(is_written, tokens.numbers, self.capacity)
        return self._replace(
            stored_keys=write(self.stored_keys, self._pack(tokens.key), slots),
            stored_values=write(self.stored_values, self._pack(tokens.value), slots),
            fields=write_fields(self.fields, tokens.fields, slots),
            lengths=jnp.where(fits, lengths, self.lengths),
            overflowed=overflowed,
        )

    def _shortened(self, lengths: jax.Array) -> Self:
        return self._replace(lengths=lengths)


@pytree
class KVCache(Contiguous):
    """A cache of fixed capacity.

    Keys and values are stored as `[*B, K, S, D]`: all tokens of a head follow one another, so that
    attention reads them without a transpose. Where memory is short, donate the cache to the
    compiled step (`jax.jit(step, donate_argnames="cache")`): tokens are then written in place.

    Make it by `KVCache.create`. The attributes are those of every cache; `lengths` may differ
    between the sequences of a batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import caches, masks
      >>> cache = caches.KVCache.create(16, num_kv_heads=2, head_dim=8, batch=3)
      >>> q, k, v = jnp.ones((3, 5, 4, 8)), jnp.ones((3, 5, 2, 8)), jnp.ones((3, 5, 2, 8))
      >>> out, cache = cache.attend(q, k, v, mask=masks.Causal())   # five tokens at once
      >>> out, cache = cache.attend(q[:, :1], k[:, :1], v[:, :1], mask=masks.Causal())
      >>> out.shape, cache.lengths.tolist()
      ((3, 1, 4, 8), [6, 6, 6])
    """

    stored_keys: Float[Array, "*B K S D"]
    stored_values: Float[Array, "*B K S Dv"]
    fields: dict[str, Array]
    lengths: Int[Array, "*B"]
    overflowed: Bool[Array, "*B"]

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
    ) -> "KVCache":
        """An empty cache.

        Args:
          capacity: S, how many tokens of a sequence can be stored.
          num_kv_heads: K.
          head_dim: D.
          batch: Batch axes `*B`: a number or several.
          value_head_dim: Dv; D by default. May be 0, for latent attention.
          dtype: dtype of keys and values.
          fields: Names and dtypes of the coordinates besides positions, such as
            `{"segment_ids": jnp.int32}`.

        Returns:
          A cache without tokens.

        Raises:
          ValueError: If a size is below 1, or `value_head_dim` below 0; if a field has the name of
            a coordinate that every cache has.
          TypeError: If a size is no whole number, `dtype` is not floating point, or `fields` is no
            mapping.
        """
        owner = "KVCache.create"
        capacity = check_positive(owner, "capacity", capacity)
        heads = new_heads(owner, num_kv_heads, head_dim, value_head_dim, dtype)
        batch = as_batch(owner, batch)
        return cls(
            *new_stores(heads, batch, capacity),
            new_fields(owner, fields, (*batch, capacity)),
            *no_tokens(batch),
        )
