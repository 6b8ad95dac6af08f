"""Block maps: which blocks of pairs a mask fills, fills in part, or leaves empty."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int8

from flax_attn._checks import as_integer
from flax_attn._functions import kind_of
from flax_attn._integers import as_ids, saturate
from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import MissingFieldError, Record
from flax_attn.coords import Aligned, Coords, PerHead, to_record
from flax_attn.masks._bounds import Range, Truth
from flax_attn.masks._intervals import Tiling, interpret
from flax_attn.masks._mask import Mask, how_to_mask
from flax_attn.masks.positional import Causal, Full

EMPTY, PARTIAL, FULL = 0, 1, 2
CHARACTERS = "·▒█"
COLUMNS = 64


@pytree
class Plan:
    """The block map of a mask: which blocks of pairs are empty, partial or full.

    Attributes:
      kinds: 0 empty, 1 partial, 2 full, `[*B | 1, N | 1, nq, nk]`. No query of an empty block
        attends to a key of it, and all queries of a full block attend to all keys of it. A block is
        partial if neither is known.
      block: Numbers of queries and of keys in a block.
      lengths: T and S. The last block of a side may have fewer tokens.

    Example:
      >>> from flax_attn import Coords, masks
      >>> print(masks.make_plan(masks.Causal(), Coords.arange(1024), block=(256, 256)))
      ▒···
      █▒··
      ██▒·
      ███▒
    """

    kinds: Int8[Array, "*B N nq nk"]
    block: tuple[int, int] = static()
    lengths: tuple[int, int] = static()

    @property
    def density(self) -> Any:
        """The share of blocks that are not empty; 1 if there are no blocks."""
        if not self.kinds.size:
            return 1.0
        if isinstance(self.kinds, jax.core.Tracer):
            return jnp.mean(self.kinds != EMPTY)
        return float(np.mean(np.asarray(self.kinds) != EMPTY))

    def picture(self, batch: int = 0, head: int = 0) -> str:
        """The map in characters: `█` full, `▒` partial, `·` empty.

        Args:
          batch: Batch element, counted through all batch axes. Ignored if all have the same map.
          head: Query head. Ignored if all have the same map.

        Returns:
          Lines of at most 64 characters. In a larger map, a character stands for several blocks.
        """
        kinds = np.asarray(self.kinds)
        kinds = kinds.reshape(-1, *kinds.shape[-3:])
        kinds = kinds[batch if len(kinds) > 1 else 0, head if kinds.shape[1] > 1 else 0]
        step = max(1, math.ceil(max(kinds.shape) / COLUMNS))
        rows, columns = (range(0, n, step) for n in kinds.shape)
        tiles = [[kinds[i : i + step, j : j + step] for j in columns] for i in rows]
        return "\n".join("".join(CHARACTERS[_summary(x)] for x in row) for row in tiles)

    def __str__(self) -> str:
        return self.picture()

    def __repr__(self) -> str:
        known = hasattr(self.kinds, "dtype") and not isinstance(self.kinds, jax.core.Tracer)
        density = f", density={self.density:.3f}" if known else ""
        return (
            f"Plan({show_value(self.kinds)}, block={self.block}, lengths={self.lengths}{density})"
        )


def _summary(kinds: np.ndarray) -> int:
    return int(kinds.flat[0]) if (kinds == kinds.flat[0]).all() else PARTIAL


def make_plan(
    mask: Mask,
    query_coords: Coords,
    key_coords: Coords | None = None,
    block: tuple[int, int] = (256, 256),
    *,
    head_ids: Int[Array, "N"] | None = None,
) -> Plan:
    """Find the blocks that attention can skip, and those where it needs no mask.

    The mask is not evaluated pair by pair. Its operations are applied to the bounds of the
    coordinates of each block, in O(T + S + nq · nk) time and memory. A block reported as
    empty or full is certainly so. A block may be reported as partial although it is empty or full,
    if the mask has operations without a rule, the coordinates of the block are scattered, or an
    integer could overflow. Coordinates and the numbers of the mask may be traced. One plan serves
    all layers with the same mask and coordinates.

    Args:
      mask: The mask.
      query_coords: Coordinates of the T queries.
      key_coords: Coordinates of the S keys. Default: `query_coords`.
      block: Numbers of queries and of keys in a block.
      head_ids: Global head ids `[N]`, for a mask that depends on the head.

    Returns:
      A `Plan` with `ceil(T / block[0])` by `ceil(S / block[1])` blocks.

    Raises:
      TypeError: If `mask` is not a `Mask`, or coordinates are not `Coords`.
      ValueError: If a block size is below 1, or the mask reads a field that is not in the
        coordinates.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Coords, masks
      >>> packed = Coords.from_segments(jnp.repeat(jnp.arange(4), 300))
      >>> masks.make_plan(masks.Causal() & masks.SameSegment(), packed, block=(100, 100))
      Plan(int8[1, 1, 12, 12], block=(100, 100), lengths=(1200, 1200), density=0.167)
    """
    if not isinstance(mask, Mask):
        swapped = isinstance(mask, Coords)
        fix = "Write make_plan(mask, query_coords)." if swapped else how_to_mask(mask)
        raise TypeError(f"make_plan: mask must be a Mask, got {kind_of(mask)}. {fix}")
    key_coords = query_coords if key_coords is None else key_coords
    for name, coords in (("query_coords", query_coords), ("key_coords", key_coords)):
        if not isinstance(coords, Coords):
            raise TypeError(
                f"make_plan: {name} must be Coords, got {kind_of(coords)}. For positions 0, 1, ... "
                f"write Coords.arange(length)."
            )
    if not isinstance(block, tuple | list) or len(block) != 2:
        raise ValueError(
            f"make_plan: block must be the numbers of queries and of keys, got {block!r}. Write "
            f"block=(256, 256)."
        )
    rows, cols = (as_integer("make_plan", "block", size) for size in block)
    block = (rows, cols)
    if min(block) < 1:
        raise ValueError(f"make_plan: block sizes must be at least 1, got {block}.")
    aligned = jax.tree.leaves(mask, is_leaf=lambda x: isinstance(x, Aligned))
    batch_ndim = max(
        _batch_ndim(query_coords),
        _batch_ndim(key_coords),
        *(_batch_ndim_of(x) for x in aligned if isinstance(x, Aligned)),
        1,
    )
    if head_ids is not None:
        head_ids = saturate(as_ids("make_plan: head_ids", head_ids))
        if head_ids.ndim != 1:
            raise ValueError(
                f"make_plan: head_ids must be [N], got {list(head_ids.shape)}. Write "
                f"jnp.arange(num_heads)."
            )
    q = to_record(query_coords, "query", batch_ndim, head_ids)
    k = to_record(key_coords, "key", batch_ndim)
    try:
        kinds = _compiled(mask, q, k, block)
    except MissingFieldError as error:
        if "no 'head_ids'" not in str(error):
            raise
        raise MissingFieldError(
            "make_plan: head_ids must be given, as the mask depends on the head. Write "
            "head_ids=jnp.arange(num_heads)."
        ) from None
    return Plan(kinds, block, (len(query_coords), len(key_coords)))


def _batch_ndim(coords: Coords) -> int:
    fields = coords.fields().values()
    return max(x.values.ndim - 2 if isinstance(x, PerHead) else x.ndim - 1 for x in fields)


def block_kinds(
    mask: Mask, q: Record, k: Record, block: tuple[int, int]
) -> Int8[Array, "*B N nq nk"]:
    """EMPTY, PARTIAL or FULL for every block of pairs.

    Args:
      mask: The mask, with whole arrays as `Aligned` fields.
      q: The record of the queries, with fields `[*B | 1, N | 1, T, 1]`.
      k: The record of the keys, with fields `[*B | 1, N | 1, 1, S]`.
      block: Numbers of queries and of keys in a block.
    """
    length_q, length_k = q.positions.shape[-2], k.positions.shape[-1]
    batch_ndim = q.positions.ndim - 3
    q_bounds, q_valid = _bound_record(q, -2, block[0])
    k_bounds, k_valid = _bound_record(k, -1, block[1])
    tiling = Tiling((length_q, block[0]), (length_k, block[1]))
    truth = interpret(_bound_mask(mask, batch_ndim, tiling), q_bounds, k_bounds, tiling)
    is_seen = q_valid.any & k_valid.any & truth.any
    is_full = q_valid.all & k_valid.all & truth.all
    kinds = jnp.where(is_seen, jnp.where(is_full, FULL, PARTIAL), EMPTY).astype(jnp.int8)
    counts = tuple(-(-length // size) for length, size in tiling)
    return jnp.broadcast_to(kinds, (*kinds.shape[:-2], *counts))


def in_common(kinds: Int[Array, "..."], axis: int) -> Int[Array, "..."]:
    """The kind of the blocks along an axis, taken as one."""
    lowest, highest = jnp.min(kinds, axis), jnp.max(kinds, axis)
    return jnp.where(lowest == highest, lowest, PARTIAL).astype(kinds.dtype)


_compiled = jax.jit(block_kinds, static_argnames="block")


def _bound_record(record: Record, axis: int, block: int) -> tuple[Record, Truth]:
    """The bounds of the fields in each block, and of the validity of its tokens."""
    fields = dict(record._fields)
    valid = fields.get("valid")
    bounds: dict[str, Any] = {}
    if "head_ids" in fields:
        bounds["head_ids"] = Range(fields["head_ids"], fields.pop("head_ids"))
    for name, values in fields.items():
        bounds[name] = block_bounds(values, axis, block, valid)
    if valid is None:
        valid = jnp.ones_like(fields["positions"], bool)
    return Record(record._side, bounds), Truth(*block_bounds(valid, axis, block))


def block_bounds(
    values: Array, axis: int, block: int, valid: Bool[Array, "..."] | None = None
) -> Range | Truth:
    """The bounds of an array in each block of one axis.

    Args:
      values: The array.
      axis: The axis that is cut into blocks. It has one element per block in the result. The last
        block may be smaller.
      block: Number of elements in a block.
      valid: False for elements that are ignored; broadcasts against the array. In a block without
        valid elements lo is above hi, and the bounds mean nothing.

    Returns:
      `Truth` for booleans, `Range` for other arrays. A block with a NaN has NaN bounds.
    """
    dtype = values.dtype
    if dtype == jnp.bool_:
        some = values if valid is None else values & valid
        every = values if valid is None else values | ~valid
        return Truth(
            _reduce(jnp.any, some, axis, block, False), _reduce(jnp.all, every, axis, block, True)
        )
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    low, high = (jnp.iinfo(dtype).min, jnp.iinfo(dtype).max) if is_integer else (-jnp.inf, jnp.inf)
    lo, hi = values, values
    if valid is not None:
        lo, hi = jnp.where(valid, values, high), jnp.where(valid, values, low)
    lo, hi = _reduce(jnp.min, lo, axis, block, high), _reduce(jnp.max, hi, axis, block, low)
    return Range(lo, hi)


def _reduce(function: Any, values: Array, axis: int, block: int, fill: Any) -> Array:
    axis %= values.ndim
    length = values.shape[axis]
    count = -(-length // block)
    if count * block != length:
        padding = [(0, count * block - length if i == axis else 0) for i in range(values.ndim)]
        values = jnp.pad(values, padding, constant_values=fill)
    shape = (*values.shape[:axis], count, block, *values.shape[axis + 1 :])
    return function(values.reshape(shape), axis=axis + 1)


def _bound_mask(mask: Any, batch_ndim: int, tiling: Tiling) -> Any:
    """A mask with the bounds of each block in place of its `Aligned` arrays.

    The arrays get the batch axes of the records. A mask with a method `block_truth` keeps its
    arrays.
    """

    def is_leaf(x: Any) -> bool:
        return isinstance(x, Aligned) or hasattr(x, "block_truth")

    def prepare(x: Any, bound: bool = True) -> Any:
        if isinstance(x, Aligned):
            x = _with_batch_axes(x, batch_ndim)
            _check_lengths(x, tiling)
            return _bound_array(x, tiling) if bound and {"t", "s"} & set(x.axes) else x
        if is_leaf(x):
            inside = functools.partial(prepare, bound=False)
            return jax.tree.map(inside, x, is_leaf=lambda y: isinstance(y, Aligned))
        return x

    return jax.tree.map(prepare, mask, is_leaf=is_leaf)


def _with_batch_axes(array: Aligned, batch_ndim: int) -> Aligned:
    values, missing = array.values, batch_ndim - _batch_ndim_of(array)
    if not array.axes.startswith("b") or missing <= 0:
        return array
    return Aligned(values.reshape((1,) * missing + values.shape), array.axes)


def _batch_ndim_of(array: Aligned) -> int:
    return array.values.ndim - len(array.axes) + 1


def _check_lengths(array: Aligned, tiling: Tiling) -> None:
    expected = [tiling.query[0], tiling.key[0]]
    sizes = dict(zip(reversed(array.axes), reversed(array.values.shape), strict=False))
    got = [sizes.get(letter, 1) for letter in "ts"]
    if any(n not in (1, length) for n, length in zip(got, expected, strict=True)):
        raise ValueError(
            f"make_plan: an array of the mask must be [T, S] = {expected}, got {got}. Pass the "
            f"coordinates of the tokens that the array was made for."
        )


def _bound_array(array: Aligned, tiling: Tiling) -> Aligned:
    if array.axes != "bnts":
        raise NotImplementedError(
            f"make_plan: an array of a mask must have the axes bnts, got {array.axes!r}."
        )
    bounds = (array.values, array.values)
    for axis, (_, size) in ((-1, tiling.key), (-2, tiling.query)):
        if array.values.shape[axis] > 1:
            ends = [block_bounds(end, axis, size) for end in bounds]
            bounds = (ends[0][0], ends[1][1])
    kind = Truth if array.values.dtype == jnp.bool_ else Range
    return Aligned(kind(*bounds), array.axes)


SPARSE = 0.4  # a mask that leaves less than this share of the blocks is sparse
BLOCK = (512, 512)


def is_probably_sparse(mask: Mask, lengths: tuple[Any, Any], located: bool) -> bool:
    """Whether a mask probably hides most scores of a long sequence.

    The share is computed where it can be known: for integer parameters and positions from 0. It is
    guessed otherwise: given coordinates usually mean packed sequences.

    Args:
      mask: The mask.
      lengths: T and S.
      located: Whether the user gave coordinates.
    """
    if isinstance(mask, Full | Causal) or not all(isinstance(n, int) for n in lengths):
        return False
    if min(lengths) <= 2 * BLOCK[0]:
        return False
    leaves = jax.tree.leaves(mask, is_leaf=lambda x: isinstance(x, Aligned))
    if located or not all(isinstance(leaf, bool | int | float) for leaf in leaves):
        return True
    return _density(jax.tree.structure(mask), tuple(leaves), lengths) < SPARSE


@functools.lru_cache(maxsize=256)
def _density(
    tree: jax.tree_util.PyTreeDef, leaves: tuple[int, ...], lengths: tuple[int, int]
) -> float:
    mask: Mask = jax.tree.unflatten(tree, leaves)
    with jax.ensure_compile_time_eval():
        query, key = (Coords.arange(length) for length in lengths)
        return make_plan(mask, query, key, block=BLOCK).density
