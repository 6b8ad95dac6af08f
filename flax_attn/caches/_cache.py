"""What all caches share: checks, the places of new tokens, and attention."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flax_attn._checks import as_floating, broadcasts_to, check_at_least, check_positive
from flax_attn._integers import as_bound, known
from flax_attn._jax import check_traced
from flax_attn.attention import dot_product_attention
from flax_attn.coords import Coords, PerHead

Dtype = Any
Store = Any
"""Arrays `[*B, K, S, ...]`: an array, or a pytree of arrays."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """New tokens.

    Attributes:
      key: `[*B, T, K, D]`.
      value: `[*B, T, K, Dv]`.
      fields: Their coordinates `[*B, T]`, by name.
      is_stored: Which tokens are stored `[*B, T]`: the valid ones.
      numbers: The number of each stored token in its sequence `[*B, T]`.
      counts: How many tokens of each sequence are stored `[*B]`.
    """

    key: jax.Array
    value: jax.Array
    fields: dict[str, jax.Array]
    is_stored: jax.Array
    numbers: jax.Array
    counts: jax.Array


class Heads(NamedTuple):
    """What the keys and values of a cache are: their heads and dtypes.

    Attributes:
      num: K.
      head_dim: D.
      value_head_dim: Dv.
      dtype: dtype of the keys; None if any is taken.
      value_dtype: dtype of the values; None if any is taken.
    """

    num: int
    head_dim: int
    value_head_dim: int
    dtype: Dtype | None
    value_dtype: Dtype | None


class Cache:
    """Keys, values and coordinates of the tokens so far. A cache is an immutable pytree.

    Attributes:
      stored_keys: Keys, in the layout of the cache.
      stored_values: Values, in the layout of the cache.
      fields: Coordinates of the stored tokens, by name.
      lengths: How many tokens each sequence has had `[*B]`.
      overflowed: Which sequences got tokens that did not fit `[*B]`.
    """

    stored_keys: Store
    stored_values: Store
    fields: dict[str, Array]
    lengths: Int[Array, "*B"]
    overflowed: Bool[Array, "*B"]

    # ---- what a cache holds

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes `*B`."""
        return self.lengths.shape

    @property
    def capacity(self) -> int:
        """How many tokens of a sequence can be stored at a time."""
        raise NotImplementedError

    @property
    def keys(self) -> Float[Array, "*B S K D"]:
        """The keys, as attention takes them. Those beyond the stored tokens mean nothing."""
        return self._read(self.stored_keys)

    @property
    def values(self) -> Float[Array, "*B S K Dv"]:
        """The values, as attention takes them."""
        return self._read(self.stored_values)

    @property
    def coords(self) -> Coords:
        """The coordinates of the keys `[*B, S]`; `valid` is True for the stored tokens."""
        raise NotImplementedError

    # ---- what can be done with it

    def append(
        self,
        key: Float[Array, "*B T K D"],
        value: Float[Array, "*B T K Dv"],
        coords: Coords | None = None,
    ) -> Self:
        """A cache with more tokens.

        Args:
          key: Keys of the new tokens `[*B, T, K, D]`.
          value: Their values `[*B, T, K, Dv]`.
          coords: Their coordinates `[T]` or `[*B, T]`. Default: positions continue from the number
            of tokens so far. Tokens that are not `valid`, such as padding, are not stored.

        Returns:
          The new cache. If tokens of a sequence do not fit, none of them is stored, and the
          sequence is marked in `overflowed` until it is reset.

        Raises:
          ValueError: If shapes or dtypes are not those of the cache, or tokens do not fit. Under
            `jit` that is unknown: see `overflowed` and `check`.
          TypeError: If keys or values are not floating point, or `coords` are not `Coords`.
          NotImplementedError: If a coordinate has one value per head.
        """
        raise NotImplementedError

    def attend(
        self,
        query: Float[Array, "*B T N D"],
        key: Float[Array, "*B T K D"],
        value: Float[Array, "*B T K Dv"],
        coords: Coords | None = None,
        *,
        attention: Callable[..., jax.Array] = dot_product_attention,
        **options: Any,
    ) -> tuple[Float[Array, "*B T N Dv"], Self]:
        """Append tokens, and attend from them to all tokens of their sequence.

        Step by step or in pieces of any length, the outputs are the rows of one pass over all
        tokens, if the mask hides later tokens: pass `mask=masks.Causal()`.

        Args:
          query: Queries of the new tokens `[*B, T, N, D]`.
          key: Their keys `[*B, T, K, D]`.
          value: Their values `[*B, T, K, Dv]`.
          coords: Their coordinates; see `append`.
          attention: Called as `attention(query, keys, values, query_coords=..., key_coords=...,
            **options)`.
          **options: Options of `dot_product_attention`: `mask`, `score_mod`, ...

        Returns:
          The output `[*B, T, N, Dv]` and the new cache. The output of a sequence that overflowed is
          NaN.

        Raises:
          ValueError: As `append`.
          TypeError: As `append`; if `query_coords` or `key_coords` are given, or `attention`
            returns more than one array.
          NotImplementedError: As `append`.
        """
        self._check_options(options)
        cache = self.append(key, value, coords)
        output = attention(
            query,
            cache.keys,
            cache.values,
            query_coords=self.next_coords(key.shape[-3], coords),
            key_coords=cache.coords,
            **options,
        )
        return cache._without_overflow(output), cache

    def next_coords(self, length: int, coords: Coords | None = None) -> Coords:
        """The coordinates of the next tokens.

        Args:
          length: Number of tokens T.
          coords: Coordinates to complete `[T]` or `[*B, T]`.

        Returns:
          Coordinates `[*B, T]`, whose numbers, and by default positions, continue those so far.

        Raises:
          ValueError: If `coords` are not of `length` tokens, or of another batch.
          TypeError: If they are not `Coords`.
          NotImplementedError: If a coordinate has one value per head.
        """
        is_stored = jnp.ones((*self.batch, length), bool)
        if coords is not None:
            _check_coords(self._function("next_coords"), coords, (*self.batch, length))
            if coords.valid is not None:
                is_stored = jnp.broadcast_to(coords.valid, is_stored.shape)
        numbers = self._numbers(is_stored)
        if coords is None:
            return Coords(numbers, numbers=numbers)
        fields = {name: jnp.broadcast_to(x, numbers.shape) for name, x in coords.fields().items()}
        return Coords(**fields, numbers=numbers)

    def reset(self, where: Bool[Array, "*B"] | None = None) -> Self:
        """A cache without tokens.

        Args:
          where: Which sequences to empty `[*B]`; None for all.

        Returns:
          The new cache, in which these sequences are no longer marked as overflowed.

        Raises:
          ValueError: If `where` does not broadcast to `[*B]`.
          TypeError: If it is not boolean.
        """
        owner = self._function("reset")
        where = jnp.asarray(True if where is None else where)
        if where.dtype != jnp.bool_:
            raise TypeError(
                f"{owner}: where must be boolean, True for sequences to empty, got {where.dtype}. "
                f"Write where.astype(bool)."
            )
        where = self._of_batch(f"{owner}: where", where)
        cache = self._shortened(jnp.where(where, 0, self.lengths))
        return cache._replace(overflowed=self.overflowed & ~where)

    def truncate(self, lengths: int | Int[Array, "*B"]) -> Self:
        """A cache without the last tokens, as speculative decoding needs it.

        Args:
          lengths: How many tokens of each sequence to keep, one number or `[*B]`. Shorter sequences
            stay as they are.

        Returns:
          The new cache.

        Raises:
          ValueError: If `lengths` do not broadcast to `[*B]`, or are below 0; in a `RollingCache`,
            if tokens that are still needed were overwritten.
          TypeError: If they are not integers.
        """
        name = f"{self._function('truncate')}: lengths"
        lengths = self._of_batch(name, as_bound(name, lengths))
        return self._shortened(jnp.minimum(as_sizes(name, lengths), self.lengths))

    def check(self) -> None:
        """Raise if a sequence overflowed.

        Inside a function that `jax.experimental.checkify` checks, the error is raised when the
        function has run. Inside other compiled functions JAX refuses this; return `overflowed`.

        Raises:
          ValueError: If tokens of a sequence did not fit.
        """
        message = f"{type(self).__name__}: tokens of a sequence did not fit into the cache"
        has_overflowed = known(self.overflowed)
        if has_overflowed is None:
            check_traced(~jnp.any(self.overflowed), f"{message}.")
        elif np.any(has_overflowed):
            which = np.flatnonzero(has_overflowed).tolist()
            raise ValueError(f"{message}: those of {which}, through all batch axes. Reset them.")

    # ---- what the classes share

    def _replace(self, **changes: Any) -> Self:
        """A copy with other attributes."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def _function(self, method: str) -> str:
        """The name of a method in error messages."""
        return f"{type(self).__name__}.{method}"

    def _dtype_fix(self, dtype: Dtype) -> str:
        """What to do if new tokens have another dtype than the cache."""
        return f"Cast it, or create the cache with dtype={dtype}."

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Raise if the coordinates of queries or keys are among the options of attention."""
        for name in ("query_coords", "key_coords"):
            if name in options:
                raise TypeError(
                    f"{self._function('attend')}: {name} must not be given, as queries and keys "
                    f"are the same new tokens, and the cache holds the others' coordinates. Pass "
                    f"coords= for the new tokens."
                )

    def _shortened(self, lengths: jax.Array) -> Self:
        """The cache with at most as many tokens."""
        raise NotImplementedError

    @property
    def _slot_numbers(self) -> jax.Array:
        """0 ... S − 1 for each sequence `[*B, S]`."""
        shape = (*self.batch, self.capacity)
        return lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)

    def _numbers(self, is_stored: jax.Array) -> jax.Array:
        """The number of each new token in its sequence `[*B, T]`."""
        one = is_stored.astype(jnp.int32)
        return self.lengths[..., None] + jnp.cumsum(one, axis=-1) - one

    def _of_batch(self, name: str, array: jax.Array) -> jax.Array:
        """An array with a number for each sequence."""
        if not broadcasts_to(array.shape, self.batch):
            raise ValueError(
                f"{name} must be one number or [*B] = {list(self.batch)}, got {list(array.shape)}."
            )
        return jnp.broadcast_to(array, self.batch)

    @property
    def _heads(self) -> Heads:
        keys, values = self.stored_keys, self.stored_values
        return Heads(keys.shape[-3], keys.shape[-1], values.shape[-1], keys.dtype, values.dtype)

    def _pack(self, rows: jax.Array) -> Store:
        """Keys or values `[*B, T, K, D]` as they are stored."""
        return rows

    def _read(self, store: Store) -> jax.Array:
        """Stored keys or values as `[*B, S, K, D]`."""
        return jnp.swapaxes(store, -3, -2)

    def _check_tokens(self, key: jax.Array, value: jax.Array, coords: Coords | None) -> Tokens:
        """Check new tokens, and number them."""
        owner, heads = self._function("append"), self._heads
        key, value = as_floating(owner, "key", key), as_floating(owner, "value", value)
        length = key.shape[-3] if key.ndim >= 3 else None
        for name, letters, array, size, dtype in (
            ("key", "K, D", key, heads.head_dim, heads.dtype),
            ("value", "K, Dv", value, heads.value_head_dim, heads.value_dtype),
        ):
            wanted = (*self.batch, length, heads.num, size)
            if array.shape != wanted:
                shown = ", ".join("T" if size is None else str(size) for size in wanted)
                raise ValueError(
                    f"{owner}: {name} must be [*B, T, {letters}] = [{shown}], as the cache was "
                    f"made, got {list(array.shape)}."
                )
            if dtype is not None and array.dtype != dtype:
                raise ValueError(
                    f"{owner}: {name} must be {jnp.dtype(dtype)}, as the cache is, got "
                    f"{array.dtype}. {self._dtype_fix(array.dtype)}"
                )
        assert length is not None
        if coords is not None:
            _check_coords(owner, coords, (*self.batch, length))
        new = self.next_coords(length, coords)
        fields = new.fields()
        is_stored = fields.pop("valid", jnp.ones((*self.batch, length), bool))
        if fields.keys() != self.fields.keys():
            raise ValueError(
                f"{owner}: coords must have the fields of the cache, {', '.join(self.fields)}, got "
                f"{', '.join(fields)}. Pass them all, or name others in create(fields=...)."
            )
        for name, x in fields.items():
            if x.dtype != self.fields[name].dtype:
                raise ValueError(
                    f"{owner}: {name} of coords must be {self.fields[name].dtype}, as the cache's "
                    f"is, got {x.dtype}. Cast it, or create the cache with "
                    f"fields={{{name!r}: jnp.{x.dtype}}}."
                )
        return Tokens(
            key,
            value,
            fields,
            is_stored,
            new.numbers,
            jnp.sum(is_stored, axis=-1, dtype=jnp.int32),
        )

    def _check_fit(self, fits: jax.Array, message: Callable[[], str]) -> jax.Array:
        """Raise if tokens are known not to fit. Returns the new `overflowed`."""
        is_fit = known(fits)
        if is_fit is not None and not np.all(is_fit):
            raise ValueError(message())
        return self.overflowed | ~fits

    def _without_overflow(self, output: jax.Array) -> jax.Array:
        """The output, NaN for sequences that overflowed."""
        if isinstance(output, tuple):
            raise TypeError(
                f"{self._function('attend')}: attention must return one array, got {len(output)}. "
                f"Leave out return_residual."
            )
        return jnp.where(self.overflowed[..., None, None, None], jnp.nan, output)


def _check_coords(owner: str, coords: Coords, shape: tuple[int, ...]) -> None:
    if not isinstance(coords, Coords):
        raise TypeError(
            f"{owner}: coords must be Coords, got {type(coords).__name__}. Write Coords(positions)."
        )
    for name, x in coords.fields().items():
        if isinstance(x, PerHead):
            raise NotImplementedError(
                f"{owner}: coords must have one value per token, got PerHead {name!r}, which no "
                f"cache stores."
            )
        if x.shape[-1] != shape[-1] or not broadcasts_to(x.shape, shape):
            raise ValueError(
                f"{owner}: coords must be of the new tokens, [*B, T] = {list(shape)}, got {name} "
                f"{list(x.shape)}."
            )


def new_heads(
    owner: str, num_kv_heads: int, head_dim: int, value_head_dim: int | None, dtype: Dtype
) -> Heads:
    """The heads of a new cache; the values are like the keys by default."""
    num = check_positive(owner, "num_kv_heads", num_kv_heads)
    size = check_positive(owner, "head_dim", head_dim)
    value_size = size
    if value_head_dim is not None:
        # Without values: latent attention reads them from its keys.
        value_size = check_at_least(owner, "value_head_dim", value_head_dim, 0)
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{owner}: dtype must be floating point, got {dtype}.")
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return Heads(num, size, value_size, dtype, dtype)


def new_stores(heads: Heads, batch: tuple[int, ...], length: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of no tokens yet, `[*batch, K, length, D]`."""
    return (
        jnp.zeros((*batch, heads.num, length, heads.head_dim), heads.dtype),
        jnp.zeros((*batch, heads.num, length, heads.value_head_dim), heads.value_dtype),
    )


def new_fields(
    owner: str, fields: Mapping[str, Dtype] | None, shape: tuple[int, ...], *own: str
) -> dict[str, jax.Array]:
    """Coordinates of no tokens yet: positions, the integers `own`, and what the user names."""
    fields = {} if fields is None else fields
    if not isinstance(fields, Mapping):
        raise TypeError(
            f"{owner}: fields must map names to dtypes, such as "
            f'{{"segment_ids": jnp.int32}}, got {type(fields).__name__}.'
        )
    for name in ("positions", "valid", "numbers", *own):
        if name in fields:
            raise ValueError(f"{owner}: fields must not contain {name!r}, which every cache has.")
    dtypes = dict.fromkeys(own, jnp.int32) | dict(fields)
    arrays = {name: jnp.zeros(shape, dtype) for name, dtype in dtypes.items()}
    return Coords(jnp.zeros(shape, jnp.int32), **arrays).fields()  # which checks the names


def no_tokens(batch: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`lengths` and `overflowed` of an empty cache."""
    return jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)


def as_batch(owner: str, batch: int | tuple[int, ...]) -> tuple[int, ...]:
    """The batch axes as a tuple."""
    try:
        sizes: tuple[int, ...] = (operator.index(batch),)  # type: ignore[arg-type]
    except TypeError:
        if not isinstance(batch, Iterable):
            raise TypeError(
                f"{owner}: batch must be a number or several, got {type(batch).__name__}. Leave it "
                f"out for one sequence."
            ) from None
        sizes = tuple(batch)
    return tuple(check_positive(owner, "batch", size) for size in sizes)


def as_sizes(name: str, sizes: jax.Array) -> jax.Array:
    """Numbers of tokens. Traced ones below 0 are 0; if they are known, they raise."""
    numbers = known(sizes)
    if numbers is not None and np.any(numbers < 0):
        raise ValueError(f"{name} must be at least 0, got {np.min(numbers)}.")
    return jnp.maximum(sizes, 0)
