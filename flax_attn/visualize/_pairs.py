"""A mask of one batch element and one head: its pairs, and its block map."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_attn._checks import check_at_least
from flax_attn._functions import kind_of
from flax_attn._integers import as_ids
from flax_attn._record import MissingFieldError
from flax_attn.attention._core.parts import align
from flax_attn.coords import Aligned, Coords, PerHead, to_record
from flax_attn.masks import Mask, make_plan
from flax_attn.masks._mask import how_to_mask
from flax_attn.visualize._draw import check_known


class Pairs(NamedTuple):
    """A mask and its tokens, without batch and heads.

    Attributes:
      mask: The mask, whose `Aligned` arrays have batch and head axes of size 1.
      query: Coordinates of the queries `[T]`.
      key: Coordinates of the keys `[S]`.
      head_ids: Global number of the head `[1]`.
    """

    mask: Mask
    query: Coords
    key: Coords
    head_ids: jax.Array

    @property
    def lengths(self) -> tuple[int, int]:
        """T and S."""
        return len(self.query), len(self.key)

    def take(self, rows: slice, cols: slice) -> "Pairs":
        """The pairs of some queries and keys."""

        def cut(x: Any) -> Any:
            if not isinstance(x, Aligned):
                return x
            chosen = {"t": rows, "s": cols}
            index = [
                chosen.get(letter, slice(None)) if size > 1 else slice(None)
                for letter, size in zip(x.axes, x.values.shape, strict=True)
            ]
            return Aligned(x.values[tuple(index)], x.axes)

        mask = jax.tree.map(cut, self.mask, is_leaf=is_aligned)
        return Pairs(mask, self.query[rows], self.key[cols], self.head_ids)

    def visible(self) -> np.ndarray:
        """Whether each query attends to each key `[T, S]`, in O(T · S) memory."""
        q, k = to_record(self.query, "query", 1, self.head_ids), to_record(self.key, "key", 1)
        return np.asarray(_visible(self.mask, q, k)).reshape(self.lengths)

    def kinds(self, block: tuple[int, int]) -> np.ndarray:
        """EMPTY, PARTIAL or FULL for every block `[nq, nk]`, in O(T + S + nq · nk) memory."""
        plan = make_plan(self.mask, self.query, self.key, block, head_ids=self.head_ids)
        return np.asarray(plan.kinds)[0, 0]


@jax.jit
def _visible(mask: Mask, q: Any, k: Any) -> jax.Array:
    shape = jnp.broadcast_shapes(q.positions.shape, k.positions.shape)
    visible = mask(q, k)
    for record in (q, k):
        if "valid" in record._fields:
            visible = visible & record.valid
    return jnp.broadcast_to(visible, shape)


def is_aligned(x: Any) -> bool:
    """Whether a node of a pytree is an `Aligned` array."""
    return isinstance(x, Aligned)


def one_head(
    function: str,
    mask: Mask,
    query_coords: Coords,
    key_coords: Coords | None,
    batch: int,
    head: int,
    head_ids: Any,
) -> Pairs:
    """The pairs of one batch element and one head.

    Args:
      function: The public function, for messages.
      mask: The mask.
      query_coords: Coordinates of the queries `[*B, T]`.
      key_coords: Coordinates of the keys `[*B, S]`; None for those of the queries.
      batch: Batch element, counted through all batch axes.
      head: Index of the head.
      head_ids: Global numbers of the heads `[N]`; None for 0 ... N − 1.
    """
    if not isinstance(mask, Mask):
        swapped = isinstance(mask, Coords)
        fix = f"Write {function}(mask, query_coords)." if swapped else how_to_mask(mask)
        raise TypeError(f"{function}: mask must be a Mask, got {kind_of(mask)}. {fix}")
    key_coords = query_coords if key_coords is None else key_coords
    for name, coords in (("query_coords", query_coords), ("key_coords", key_coords)):
        if not isinstance(coords, Coords):
            raise TypeError(
                f"{function}: {name} must be Coords, got {kind_of(coords)}. For positions 0, 1, "
                f"... write Coords.arange(length)."
            )
    for name, part in (("mask", mask), ("coordinates", (query_coords, key_coords))):
        check_known(function, name, part)
    if head_ids is not None:
        head_ids = as_ids(f"{function}: head_ids", head_ids)
        if head_ids.ndim != 1:
            raise ValueError(
                f"{function}: head_ids must be [N], got {list(head_ids.shape)}. Write "
                f"jnp.arange(num_heads)."
            )
    shapes = list(_batch_shapes(mask, query_coords, key_coords))
    try:
        shape_B = np.broadcast_shapes(*shapes)
    except ValueError:
        given = sorted({str(list(shape)) for shape in shapes if shape})
        raise ValueError(
            f"{function}: mask and coordinates must have batch axes that broadcast, got "
            f"{', '.join(given)}."
        ) from None
    num_heads = _num_heads(function, mask, query_coords, key_coords, head_ids)
    b = _index(function, "batch", batch, math.prod(shape_B))
    n = _index(function, "head", head, num_heads, strict=head_ids is not None)
    number = head if head_ids is None else int(head_ids[n])
    for name, size in _tables(mask):
        if head_ids is not None and not 0 <= number < size:
            raise ValueError(
                f"{function}: head_ids[{n}] must lie in 0 ... {size - 1}, as {name} has {size} "
                f"numbers, got {number}. Give the numbers of the heads among all."
            )
    index = tuple(map(int, np.unravel_index(b, shape_B))) if shape_B else ()

    def pick(values: Any, place: tuple[int, ...]) -> Any:
        sizes = values.shape[: len(place)]
        return values[tuple(i if size > 1 else 0 for i, size in zip(place, sizes, strict=True))]

    def without_batch(coords: Coords) -> Coords:
        fields = {}
        for name, x in coords.fields().items():
            array = jnp.swapaxes(x.values, -1, -2) if isinstance(x, PerHead) else x
            place = (*index, n) if isinstance(x, PerHead) else index
            fields[name] = pick(array, place[len(place) - (array.ndim - 1) :])
        return Coords(**fields)

    lengths = len(query_coords), len(key_coords)
    aligned = align(function, mask, (*shape_B, num_heads, *lengths))
    single = jax.tree.map(
        lambda x: Aligned(pick(x.values, (*index, n))[None, None], x.axes) if is_aligned(x) else x,
        aligned,
        is_leaf=is_aligned,
    )
    pairs = Pairs(
        single, without_batch(query_coords), without_batch(key_coords), jnp.array([number])
    )
    _check_fields(function, pairs)
    return pairs


def _check_fields(function: str, pairs: Pairs) -> None:
    """Raise if the mask reads a field that the coordinates do not have. Nothing is computed."""
    q = to_record(pairs.query, "query", 1, pairs.head_ids)
    k = to_record(pairs.key, "key", 1)
    try:
        jax.eval_shape(lambda mask, q, k: mask(q, k), pairs.mask, q, k)
    except MissingFieldError as error:
        raise ValueError(f"{function}: {error}") from None


def _batch_shapes(mask: Mask, *sides: Coords) -> Iterator[tuple[int, ...]]:
    for coords in sides:
        for x in coords.fields().values():
            yield x.values.shape[:-2] if isinstance(x, PerHead) else x.shape[:-1]
    for x in jax.tree.leaves(mask, is_leaf=is_aligned):
        if is_aligned(x) and x.axes.startswith("b"):
            yield x.values.shape[: x.values.ndim - len(x.axes) + 1]


def _num_heads(function: str, mask: Mask, query: Coords, key: Coords, head_ids: Any) -> int:
    """N: the number of heads of which the mask or the coordinates have numbers, 1 if none."""
    sizes = set() if head_ids is None else {head_ids.size}
    for coords in (query, key):
        fields = coords.fields().values()
        sizes |= {x.values.shape[-1] for x in fields if isinstance(x, PerHead)}
    for x in jax.tree.leaves(mask, is_leaf=is_aligned):
        if is_aligned(x) and "n" in x.axes:
            sizes.add(x.values.shape[x.axes.index("n") - len(x.axes)])
    if head_ids is None:  # or else the tables may have numbers of more heads than these
        sizes |= {size for _, size in _tables(mask)}
    sizes = sizes if sizes == {1} else sizes - {1}
    if len(sizes) > 1:
        raise ValueError(
            f"{function}: the numbers per head of mask, coordinates and head_ids must be for the "
            f"same number of heads N, got {sorted(sizes)}."
        )
    return max(sizes, default=1)


def _tables(mask: Mask) -> Iterator[tuple[str, int]]:
    """Name and number of heads of every field of the mask that has one number per head."""
    for part in jax.tree.leaves(mask, is_leaf=lambda x: bool(getattr(x, "per_head", ()))):
        for name in getattr(part, "per_head", ()):
            if np.ndim(getattr(part, name)) == 1:
                yield f"{name} of {type(part).__name__}", np.size(getattr(part, name))


def _index(function: str, name: str, index: int, count: int, strict: bool = False) -> int:
    """The index, or 0 where all are the same."""
    index = check_at_least(function, name, index, 0)
    if count == 1 and not strict:
        return 0
    if index >= count:
        raise ValueError(f"{function}: {name} must lie in 0 ... {count - 1}, got {index}.")
    return index
