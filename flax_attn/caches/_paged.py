"""A cache whose tokens are stored in pages, which sequences take from a common pool and share."""

import math
from collections.abc import Mapping
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn._checks import check_positive
from flax_attn._integers import as_bound, known
from flax_attn._pytree import pytree
from flax_attn.caches._cache import (
    Cache,
    Dtype,
    Tokens,
    as_batch,
    as_sizes,
    new_fields,
    new_heads,
    new_stores,
    no_tokens,
)
from flax_attn.coords import Coords


class NewPages(NamedTuple):
    """The pages that new tokens need.

    Attributes:
      table: The page tables with them `[B, M]`.
      uses: The uses of the pages `[P]`.
      copied: Pages to copy first, since they are shared: from and to `[B]`, P for none.
      fits: Whether the pages of a sequence were found `[B]`.
    """

    table: jax.Array
    uses: jax.Array
    copied: tuple[jax.Array, jax.Array]
    fits: jax.Array


@pytree
class PagedCache(Cache):
    """A cache whose sequences take pages of tokens from a common pool as they grow.

    Token n of sequence b is stored in the page `table[b, n // page_size]`, at n mod page_size. So
    memory is bounded by the tokens of all sequences together, and sequences share the pages of a
    common prefix (`share`). A page that others use too is copied before it is written to.

    Make it by `PagedCache.create`. `keys` and `values` gather the pages of all sequences.

    Attributes:
      table: The pages of each sequence `[*B, M]`.
      uses: How many sequences use a page `[P]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import caches
      >>> cache = caches.PagedCache.create(6, 4, num_kv_heads=1, head_dim=8, batch=2, capacity=16)
      >>> x = jnp.ones((2, 5, 1, 8))
      >>> cache = cache.append(x, x)
      >>> cache.num_free.item(), cache.share(0, 1).num_free.item()
      (2, 4)

    References:
      Kwon et al., "Efficient Memory Management for Large Language Model Serving with
      PagedAttention", SOSP 2023, arXiv:2309.06180.
    """

    stored_keys: Float[Array, "P K L D"]
    stored_values: Float[Array, "P K L Dv"]
    fields: dict[str, Array]
    lengths: Int[Array, "*B"]
    overflowed: Bool[Array, "*B"]
    table: Int[Array, "*B M"]
    uses: Int[Array, "P"]

    @classmethod
    def create(
        cls,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        capacity: int,
        batch: int | tuple[int, ...] = (),
        value_head_dim: int | None = None,
        dtype: Dtype = jnp.float32,
        fields: Mapping[str, Dtype] | None = None,
    ) -> "PagedCache":
        """An empty cache.

        Args:
          num_pages: P, how many pages all sequences have together.
          page_size: L, how many tokens a page holds.
          num_kv_heads: K.
          head_dim: D.
          capacity: How many tokens a sequence may have; rounded up to whole pages.
          batch: Batch axes `*B`: a number or several.
          value_head_dim: Dv; D by default. May be 0, for latent attention.
          dtype: dtype of keys and values.
          fields: Names and dtypes of the coordinates besides positions.

        Returns:
          A cache without tokens.

        Raises:
          ValueError: If a size is below 1, or `value_head_dim` below 0; if a field has the name of
            a coordinate that every cache has.
          TypeError: If a size is no whole number, `dtype` is not floating point, or `fields` is no
            mapping.
        """
        owner = "PagedCache.create"
        num_pages = check_positive(owner, "num_pages", num_pages)
        page_size = check_positive(owner, "page_size", page_size)
        per_sequence = math.ceil(check_positive(owner, "capacity", capacity) / page_size)
        heads = new_heads(owner, num_kv_heads, head_dim, value_head_dim, dtype)
        batch = as_batch(owner, batch)
        return cls(
            *new_stores(heads, (num_pages,), page_size),
            new_fields(owner, fields, (num_pages, page_size)),
            *no_tokens(batch),
            jnp.zeros((*batch, per_sequence), jnp.int32),
            jnp.zeros(num_pages, jnp.int32),
        )

    @property
    def page_size(self) -> int:
        """L, how many tokens a page holds."""
        return self.stored_keys.shape[-2]

    @property
    def capacity(self) -> int:
        """How many tokens a sequence may have."""
        return self.table.shape[-1] * self.page_size

    @property
    def num_free(self) -> Int[Array, ""]:
        """How many pages no sequence uses."""
        return jnp.sum(self.uses == 0, dtype=jnp.int32)

    @property
    def coords(self) -> Coords:
        """The coordinates of the keys `[*B, S]`; `valid` is True for the stored tokens."""
        slots = self._slot_numbers
        fields = {name: x[self.table].reshape(slots.shape) for name, x in self.fields.items()}
        return Coords(**fields, valid=slots < self.lengths[..., None], numbers=slots)

    def append(
        self,
        key: Float[Array, "*B T K D"],
        value: Float[Array, "*B T K Dv"],
        coords: Coords | None = None,
    ) -> Self:
        """See `Cache.append`. Tokens also do not fit when no page is free."""
        tokens = self._check_tokens(key, value, coords)
        flat = self._flat()
        pages = flat._take_pages(tokens.counts.reshape(-1), tokens.key.shape[-3])
        fits = pages.fits.reshape(self.batch)

        def message() -> str:
            return (
                f"PagedCache.append: {int(np.max(tokens.counts))} tokens do not fit: there are "
                f"{int(self.num_free)} free pages of {self.page_size} tokens, and a sequence of "
                f"{int(np.max(self.lengths))} tokens may have capacity = {self.capacity}. Reset "
                f"sequences that are finished, or create the cache with more pages or capacity."
            )

        overflowed = self._check_fit(fits, message)
        written = flat._write(tokens, pages)
        return self._replace(
            stored_keys=written.stored_keys,
            stored_values=written.stored_values,
            fields=written.fields,
            table=pages.table.reshape(self.table.shape),
            uses=pages.uses,
            lengths=jnp.where(fits, self.lengths + tokens.counts, self.lengths),
            overflowed=overflowed,
        )

    def share(
        self,
        source: int | Int[Array, ""],
        target: int | Int[Array, ""],
        length: int | Int[Array, ""] | None = None,
    ) -> Self:
        """Make a sequence begin with the tokens of another one, without copying them.

        Args:
          source: Index of the sequence whose tokens are shared, through all batch axes.
          target: Index of the sequence that gets them. Its own tokens are forgotten.
          length: How many tokens to share; None for all.

        Returns:
          The new cache. If a traced source is no other sequence, nothing is shared, and the target
          is marked in `overflowed`.

        Raises:
          ValueError: If `source` or `target` is no sequence, both are the same, or `length` is
            below 0.
          TypeError: If they are not integers.
        """
        owner, flat = "PagedCache.share", self._flat()
        (count,) = flat.batch
        source, target = (
            _as_index(f"{owner}: {name}", index, count)
            for name, index in (("source", source), ("target", target))
        )
        is_other = known(source != target)
        if is_other is not None and not is_other:
            raise ValueError(f"{owner}: source and target must differ, got {int(source)} twice.")
        indices = jnp.arange(count, dtype=jnp.int32)
        is_source, is_target = indices == source, indices == target
        may_share = jnp.any(is_source) & jnp.any(is_target) & (source != target)
        overflowed = (self.overflowed.reshape(-1) & ~is_target) | (is_target & ~may_share)
        is_target &= may_share

        most = flat.lengths[source]
        if length is not None:
            name = f"{owner}: length"
            most = jnp.minimum(most, as_sizes(name, as_bound(name, length)))
        row = flat.table[source]
        columns = jnp.arange(row.size, dtype=jnp.int32)
        num_shared = jnp.where(may_share, -(-most // self.page_size), 0)
        shared = jnp.where(columns < num_shared, row, self.uses.size)
        emptied = flat._shortened(jnp.where(is_target, 0, flat.lengths))
        return self._replace(
            table=jnp.where(is_target[:, None], row[None], flat.table).reshape(self.table.shape),
            uses=emptied.uses.at[shared].add(1, mode="drop"),
            lengths=jnp.where(is_target, most, flat.lengths).reshape(self.batch),
            overflowed=overflowed.reshape(self.batch),
        )

    # ---- pages

    def _flat(self) -> "PagedCache":
        """The cache with one batch axis."""
        return self._replace(
            table=self.table.reshape(-1, self.table.shape[-1]),
            lengths=self.lengths.reshape(-1),
            overflowed=self.overflowed.reshape(-1),
        )

    def _take_pages(self, counts: jax.Array, length: int) -> NewPages:
        """Take pages for `counts` `[B]` more tokens, at most `length` each.

        Sequences are served in order. One that finds too few free pages takes none.
        """
        num_pages, size = self.uses.size, self.page_size
        sequences = jnp.arange(self.batch[0])
        after = self.lengths + counts
        before_pages, after_pages = -(-self.lengths // size), -(-after // size)
        last = self.table[sequences, jnp.maximum(before_pages - 1, 0)]
        writes_last = (self.lengths % size != 0) & (counts > 0)
        is_earlier = (last[:, None] == last[None]) & (sequences[:, None] > sequences[None])

        def needs(is_refused: jax.Array) -> tuple[jax.Array, jax.Array]:
            """How many pages each sequence copies (0 or 1), and how many it appends."""
            writes = writes_last & ~is_refused
            # Of several that write to the same page, the last may find that no other uses it.
            num_copies = jnp.sum(is_earlier & writes[None], axis=-1, dtype=jnp.int32)
            is_copied = writes & (self.uses[last] - num_copies > 1)
            num_appended = jnp.where(is_refused, 0, after_pages - before_pages)
            return is_copied.astype(jnp.int32), num_appended

        def is_short(is_refused: jax.Array) -> jax.Array:
            return jnp.cumsum(sum(needs(is_refused))) > self.num_free

        is_refused = lax.while_loop(
            lambda is_refused: jnp.any(is_short(is_refused)),
            lambda is_refused: is_refused | (sequences == jnp.argmax(is_short(is_refused))),
            after > self.capacity,
        )
        num_copied, num_appended = needs(is_refused)
        needed = num_copied + num_appended
        starts = jnp.cumsum(needed) - needed
        free = jnp.nonzero(self.uses == 0, size=num_pages, fill_value=num_pages)[0]
        free = free.astype(jnp.int32)  # with 64 bits enabled it is int64

        is_copied = num_copied > 0
        copies = jnp.where(is_copied, free[jnp.minimum(starts, num_pages - 1)], num_pages)
        originals = jnp.where(is_copied, last, num_pages)
        steps = jnp.arange(math.ceil(length / size) + 1, dtype=jnp.int32)[None]
        is_new = steps < num_appended[:, None]
        new = free[jnp.minimum((starts + num_copied)[:, None] + steps, num_pages - 1)]

        nowhere = self.table.shape[-1]
        column = jnp.where(is_copied, before_pages - 1, nowhere)
        columns = jnp.where(is_new, before_pages[:, None] + steps, nowhere)
        table = self.table.at[sequences, column].set(copies, mode="drop")
        table = table.at[sequences[:, None], columns].set(new, mode="drop")
        uses = self.uses.at[jnp.where(is_new, new, num_pages)].set(1, mode="drop")
        uses = uses.at[copies].set(1, mode="drop").at[originals].add(-1, mode="drop")
        return NewPages(table, uses, (originals, copies), ~is_refused)

    def _write(self, tokens: Tokens, pages: NewPages) -> "PagedCache":
        """Copy the shared pages, then write the tokens."""
        num_pages, size = self.uses.size, self.page_size
        numbers = tokens.numbers.reshape(*self.lengths.shape, -1)
        is_written = tokens.is_stored.reshape(numbers.shape) & pages.fits[:, None]
        columns = jnp.minimum(numbers // size, self.table.shape[-1] - 1)
        page = jnp.where(is_written, jnp.take_along_axis(pages.table, columns, axis=-1), num_pages)
        offset = numbers % size
        originals, copies = pages.copied

        def copied(pool: jax.Array) -> jax.Array:
            return pool.at[copies].set(pool[jnp.minimum(originals, num_pages - 1)], mode="drop")

        def rows(pool: jax.Array, new: jax.Array) -> jax.Array:
            return (
                copied(pool)
                .at[page, :, offset]
                .set(new.reshape(*page.shape, *new.shape[-2:]), mode="drop")
            )

        fields = {
            name: copied(pool)
            .at[page, offset]
            .set(tokens.fields[name].reshape(page.shape), mode="drop")
            for name, pool in self.fields.items()
        }
        return self._replace(
            stored_keys=rows(self.stored_keys, tokens.key),
            stored_values=rows(self.stored_values, tokens.value),
            fields=fields,
        )

    def _read(self, pool: jax.Array) -> jax.Array:
        """The pages of each sequence `[*B, S, K, D]`."""
        pages_BMKLD = pool[self.table]
        tokens_BMLKD = jnp.swapaxes(pages_BMKLD, -3, -2)
        return tokens_BMLKD.reshape(*self.batch, self.capacity, pool.shape[1], pool.shape[-1])

    def _shortened(self, lengths: jax.Array) -> Self:
        """The cache with at most as many tokens. Pages that are not needed become free."""
        shape = self.table.shape
        columns = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        first, end = (-(-x[..., None] // self.page_size) for x in (lengths, self.lengths))
        is_released = (columns >= first) & (columns < end)
        released = jnp.where(is_released, self.table, self.uses.size)
        uses = self.uses.at[released].add(-1, mode="drop")
        return self._replace(lengths=lengths, uses=uses)


def _as_index(name: str, index: int | jax.Array, count: int) -> jax.Array:
    """The index of a sequence as an array; raise if it is known to be none."""
    index = as_bound(name, index)
    number = known(index)
    if index.ndim or (number is not None and not 0 <= number < count):
        got = list(index.shape) if index.ndim else int(index)
        raise ValueError(f"{name} must be the index of a sequence, 0 ... {count - 1}, got {got}.")
    return index
