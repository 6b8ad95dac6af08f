"""A cache of the last tokens, for attention with a sliding window."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flax_attn._checks import check_at_least, check_positive
from flax_attn._pytree import pytree, static
from flax_attn._record import Record
from flax_attn.attention import dot_product_attention
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
from flax_attn.coords import Aligned, Coords
from flax_attn.masks import Mask, relation

ARRIVAL = "arrival"
"""The feature of keys and queries that holds the number of a token in its sequence."""


@relation
def _within(q: Record, k: Record, *, window: int, num_sinks: int) -> jax.Array:
    """The last `window` tokens up to a query, and the first `num_sinks` of the sequence."""
    return (k.arrival > q.arrival - window) | (k.arrival < num_sinks)


@pytree
class RollingCache(Cache):
    """A cache of the last `window` tokens, and optionally of the first ones ("sinks").

    Each token attends to the last `window` tokens of its sequence, itself included, and to the
    first `num_sinks`. Older tokens are overwritten, so memory does not grow and nothing overflows.
    Tokens keep their positions. (StreamingLLM renumbers those in the cache.)

    Token n is stored in slot n if it is a sink, and in slot num_sinks + (n − num_sinks) mod R
    otherwise, with R = window + spare. Several tokens at once attend to the old tokens and to each
    other before any is overwritten, so pieces may have any length.

    Make it by `RollingCache.create`.

    Attributes:
      window: How many of the last tokens a token attends to.
      num_sinks: How many of the first tokens all others attend to.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import caches, masks
      >>> cache = caches.RollingCache.create(4, num_kv_heads=1, head_dim=8)
      >>> x = jnp.ones((10, 1, 8))
      >>> out, cache = cache.attend(x, x, x, mask=masks.Causal())
      >>> cache.lengths.item(), sorted(cache.coords.positions.tolist())
      (10, [6, 7, 8, 9])

    References:
      Jiang et al., "Mistral 7B", 2023, arXiv:2310.06825; Xiao, Tian, Chen, Han, Lewis, "Efficient
      Streaming Language Models with Attention Sinks", ICLR 2024, arXiv:2309.17453.
    """

    stored_keys: Float[Array, "*B K S D"]
    stored_values: Float[Array, "*B K S Dv"]
    fields: dict[str, Array]
    lengths: Int[Array, "*B"]
    overflowed: Bool[Array, "*B"]
    window: int = static()
    num_sinks: int = static()

    @classmethod
    def create(
        cls,
        window: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        num_sinks: int = 0,
        spare: int = 0,
        batch: int | tuple[int, ...] = (),
        value_head_dim: int | None = None,
        dtype: Dtype = jnp.float32,
        fields: Mapping[str, Dtype] | None = None,
    ) -> "RollingCache":
        """An empty cache.

        Args:
          window: How many of the last tokens a token attends to, itself included.
          num_kv_heads: K.
          head_dim: D.
          num_sinks: How many of the first tokens all others attend to.
          spare: How many tokens `truncate` may take back, once older ones were overwritten.
          batch: Batch axes `*B`: a number or several.
          value_head_dim: Dv; D by default. May be 0, for latent attention.
          dtype: dtype of keys and values.
          fields: Names and dtypes of the coordinates besides positions.

        Returns:
          A cache without tokens.

        Raises:
          ValueError: If a size is below 1, or `num_sinks`, `spare` or `value_head_dim` below 0; if
            a field has the name of a coordinate that every cache has.
          TypeError: If a size is no whole number, `dtype` is not floating point, or `fields` is no
            mapping.
        """
        owner = "RollingCache.create"
        window = check_positive(owner, "window", window)
        num_sinks = check_at_least(owner, "num_sinks", num_sinks, 0)
        slots = num_sinks + window + check_at_least(owner, "spare", spare, 0)
        heads = new_heads(owner, num_kv_heads, head_dim, value_head_dim, dtype)
        batch = as_batch(owner, batch)
        return cls(
            *new_stores(heads, batch, slots),
            new_fields(owner, fields, (*batch, slots), ARRIVAL),
            *no_tokens(batch),
            window,
            num_sinks,
        )

    @property
    def capacity(self) -> int:
        """How many tokens of a sequence are stored at a time."""
        return self.stored_keys.shape[-2]

    @property
    def coords(self) -> Coords:
        """The coordinates of the keys `[*B, S]`; `valid` is True where the last token attends."""
        return self._coords(self.lengths - self.window)

    def _coords(self, oldest: jax.Array) -> Coords:
        """The coordinates of the keys; `valid` is True from the token number `oldest` on."""
        numbers = self.fields[ARRIVAL]
        is_kept = (numbers >= oldest[..., None]) | (numbers < self.num_sinks)
        return Coords(**self.fields, valid=is_kept & self._holds(self.lengths), numbers=numbers)

    def _holds(self, lengths: jax.Array) -> jax.Array:
        """Which slots hold one of the first `lengths` tokens of their sequence `[*B, S]`."""
        numbers = self.fields[ARRIVAL]
        # A slot that was never written holds the number 0, which belongs to the first slot.
        is_written = self._slots(numbers) == self._slot_numbers
        return is_written & (numbers < lengths[..., None])

    def append(
        self,
        key: Float[Array, "*B T K D"],
        value: Float[Array, "*B T K Dv"],
        coords: Coords | None = None,
    ) -> Self:
        """See `Cache.append`. The oldest tokens are overwritten."""
        tokens = self._check_tokens(key, value, coords)
        lengths = self.lengths + tokens.counts
        # Of several tokens for one slot, the last one is written.
        ring = self.capacity - self.num_sinks
        is_last = tokens.numbers >= lengths[..., None] - ring
        is_written = tokens.is_stored & (is_last | (tokens.numbers < self.num_sinks))
        slots = jnp.where(is_written, self._slots(tokens.numbers), self.capacity)
        return self._replace(
            stored_keys=write(self.stored_keys, tokens.key, slots),
            stored_values=write(self.stored_values, tokens.value, slots),
            fields=write_fields(self.fields, tokens.fields, slots),
            lengths=lengths,
        )

    def attend(
        self,
        query: Float[Array, "*B T N D"],
        key: Float[Array, "*B T K D"],
        value: Float[Array, "*B T K Dv"],
        coords: Coords | None = None,
        *,
        attention: Callable[..., jax.Array] = dot_product_attention,
        mask: Mask | None = None,
        **options: Any,
    ) -> tuple[Float[Array, "*B T N Dv"], Self]:
        """See `Cache.attend`. The mask must be a `Mask`: slots have no fixed order."""
        self._check_options(options)
        _check_relations(mask=mask, **options)
        cache = self.append(key, value, coords)
        new = self.next_coords(key.shape[-3], coords)
        if key.shape[-3] == 1:
            keys, values, key_coords = cache.keys, cache.values, cache.coords
        else:
            keys = jnp.concatenate([self.keys, key], axis=-3)
            values = jnp.concatenate([self.values, value], axis=-3)
            key_coords = _joined(self._coords(self.lengths - self.window + 1), new)
        within = _within(window=self.window, num_sinks=self.num_sinks)
        output = attention(
            query,
            keys,
            values,
            mask=within if mask is None else within & mask,
            query_coords=new,
            key_coords=key_coords,
            **options,
        )
        return cache._without_overflow(output), cache

    def next_coords(self, length: int, coords: Coords | None = None) -> Coords:
        """See `Cache.next_coords`."""
        new = super().next_coords(length, coords)
        return new.with_features(**{ARRIVAL: new.numbers})

    def _slots(self, numbers: jax.Array) -> jax.Array:
        ring = self.capacity - self.num_sinks
        rolled = self.num_sinks + (numbers - self.num_sinks) % ring
        return jnp.where(numbers < self.num_sinks, numbers, rolled)

    def _shortened(self, lengths: jax.Array) -> Self:
        """The cache with at most as many tokens; marked if older ones were overwritten."""
        first = jnp.maximum(lengths - self.window + 1, self.num_sinks)
        # What a longer sequence overwrote stays lost, so the tokens themselves are counted.
        is_needed = self._holds(lengths) & (self.fields[ARRIVAL] >= first[..., None])
        num_found = jnp.sum(is_needed, axis=-1, dtype=jnp.int32)
        is_whole = num_found == jnp.maximum(lengths - first, 0)

        def message() -> str:
            shortest = int(np.min(np.where(is_whole, np.max(lengths), lengths)))
            return (
                f"RollingCache.truncate: {shortest} tokens are to be kept, but some of the last "
                f"{self.window - 1} of them were overwritten by later ones. Create the cache with "
                f"a larger spare than {self.capacity - self.num_sinks - self.window}: how many "
                f"tokens are taken back."
            )

        overflowed = self._check_fit(is_whole, message)
        return self._replace(lengths=lengths, overflowed=overflowed)


def _check_relations(**parts: Any) -> None:
    """Raise if a part of attention is an array over keys: slots have no fixed order."""
    for name, part in parts.items():
        if name == "plan" and part is not None:
            raise TypeError(
                "RollingCache.attend: plan must be left out, since the keys change their order."
            )
        is_array = hasattr(part, "dtype") and name in ("mask", "bias")
        leaves = jax.tree.leaves(part, is_leaf=lambda x: isinstance(x, Aligned))
        over_keys = any(isinstance(x, Aligned) and "s" in x.axes for x in leaves)
        if is_array or over_keys:
            raise TypeError(
                f"RollingCache.attend: {name} must not be an array over keys, since slots have no "
                f"fixed order, got {type(part).__name__}. Write it as a relation of coordinates, "
                f"or use KVCache."
            )


def _joined(old: Coords, new: Coords) -> Coords:
    """The coordinates of two runs of tokens, one after the other."""
    first, second = old.fields(), new.fields()
    second.setdefault("valid", jnp.ones(new.positions.shape, bool))
    fields = {name: jnp.concatenate([x, second[name]], axis=-1) for name, x in first.items()}
    return Coords(**fields, numbers=jnp.concatenate([old.numbers, new.numbers], axis=-1))
