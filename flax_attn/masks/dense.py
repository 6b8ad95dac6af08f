"""Masks from data: a boolean array, and lists of key blocks."""

import operator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from flax_attn._checks import check_at_least
from flax_attn._functions import kind_of
from flax_attn._integers import integers, known, saturate
from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import Record
from flax_attn.coords import Aligned
from flax_attn.masks._intervals import Range, Tiling, Truth
from flax_attn.masks._mask import Mask, how_to_mask
from flax_attn.masks._numbers import as_number


@pytree
class Dense(Mask):
    """A boolean array as a mask.

    M_ij = array[..., n, t, s], where t and s are the indices of query and key in their arrays

    It takes O(T · S) memory, and it does not follow tokens that are reordered, cached or moved
    between devices. All other masks do. Use it where no other mask fits.

    Attributes:
      array: True where the query attends, `[*B, N, T, S]` or fewer leading axes, such as `[T, S]`
        or `[N, T, S]`; axes of size 1 broadcast. It is stored as an `Aligned`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import masks
      >>> masks.Dense(jnp.ones((4, 6), bool)) & masks.SameSegment()
      Dense(bool[1, 4, 6]) & SameSegment()
    """

    array: Aligned

    def __init__(self, array: Bool[Array, "..."]) -> None:
        dtype = getattr(array, "dtype", None)
        if dtype is None:
            is_mask = isinstance(array, Mask) or how_to_mask(array).startswith("Call it")
            fix = "Use the mask as it is" if is_mask else "Write jnp.asarray(array, bool)"
            raise TypeError(f"Dense: array must be a boolean array, got {kind_of(array)}. {fix}.")
        if dtype != jnp.bool_:
            raise TypeError(
                f"Dense: array must be boolean, True where the query attends, got {dtype}. For an "
                f"array of 0 and 1 write array.astype(bool). Pass an additive mask as bias."
            )
        array = jnp.asarray(array)
        if array.ndim < 2:
            raise ValueError(
                f"Dense: array must be [*B, N, T, S] or its last axes, at least [T, S], got "
                f"{list(array.shape)}. If all queries attend to the same keys, write array[None]."
            )
        if array.ndim == 2:
            array = array[None]
        object.__setattr__(self, "array", Aligned(array, "bnts"))

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        return self.array.values

    def __repr__(self) -> str:
        return f"Dense({show_value(self.array.values)})"


@pytree
class Selected(Mask):
    """Each block of queries attends to the blocks of keys that are listed for it.

    M_ij = ⌊j / block_size⌋ ∈ blocks[..., ⌊row_i / query_block_size⌋, :]

    where row_i is the field of the query that `rows` names, normally its position. The lists may be
    traced, as they often depend on the data; they have no gradient. Queries before row 0 or after
    the last query block attend to no key, and no query attends to keys before position 0 or after
    the last key block. For NSA and MoBA, combine this mask with `& Causal()`.

    Attributes:
      blocks: Numbers of the key blocks that each query block attends to `[*B, N, nq, topk]`, or
        `[nq, topk]`; −1 stands for no block. They count positions, not places in memory. N may be
        1. They are stored as a boolean array `[*B, N, nq, num_key_blocks]`.
      block_size: Number of positions in a block of keys.
      query_block_size: Number of rows in a block of queries. Default: `block_size`. 1 gives each
        query a list of its own, as in NSA and DSA.
      num_key_blocks: Number of blocks of keys. Default: as many as the query blocks cover.
      rows: Name of the coordinate of the queries that indexes `blocks`. To decode with one list
        per step, pass a feature of zeros and `query_block_size=1`.

    Raises:
      TypeError: If the blocks are not integers.
      ValueError: If the blocks are not `[*B, N, nq, topk]`, or a known block is not below
        `num_key_blocks`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import masks
      >>> masks.Selected(jnp.array([[0, -1], [0, 1], [0, 2]]), block_size=64) & masks.Causal()
      Selected(bool[1, 3, 3], block_size=64) & Causal()

    References:
      Yuan, Gao, Dai, Luo, Zhao, Zhang, Xie, Wei, Wang, Xiao, Wang, Ruan, Zhang, Liang, Zeng,
      "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention", ACL 2025,
      arXiv:2502.11089; Lu, Jiang, Liu, Du et al., "MoBA: Mixture of Block Attention for
      Long-Context LLMs", 2025, arXiv:2502.13189; DeepSeek-AI, "DeepSeek-V3.2: Pushing the Frontier
      of Open Large Language Models", 2025, arXiv:2512.02556.
    """

    blocks: Aligned
    block_size: int = static()
    query_block_size: int = static()
    rows: str = static()

    def __init__(
        self,
        blocks: Int[Array, "..."],
        block_size: int,
        *,
        query_block_size: int | None = None,
        num_key_blocks: int | None = None,
        rows: str = "positions",
    ) -> None:
        query_block_size = block_size if query_block_size is None else query_block_size
        block_size, query_block_size = (
            operator.index(as_number(f"Selected: {name}", size, 1, fix))
            for name, size, fix in (
                ("block_size", block_size, "It counts positions."),
                ("query_block_size", query_block_size, "It counts rows."),
            )
        )
        blocks = _check_blocks(blocks)
        if num_key_blocks is None:
            num_key_blocks = -(-blocks.shape[-2] * query_block_size // block_size)
        num_key_blocks = check_at_least("Selected", "num_key_blocks", num_key_blocks, 0)
        _check_range(blocks, num_key_blocks)
        blocks = jnp.asarray(saturate(blocks))
        object.__setattr__(self, "blocks", Aligned(_to_map(blocks, num_key_blocks), "bnxy"))
        object.__setattr__(self, "block_size", block_size)
        object.__setattr__(self, "query_block_size", query_block_size)
        object.__setattr__(self, "rows", rows)

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """See `Mask`."""
        seen = self._map(k.positions.ndim)
        rows, columns = seen.shape[-2:]
        row = getattr(q, self.rows) // self.query_block_size
        column = k.positions // self.block_size
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return inside & _look_up(seen, jnp.clip(row, 0, rows - 1), jnp.clip(column, 0, columns - 1))

    def block_truth(self, q: Record, k: Record, tiling: Tiling) -> Truth:
        """The bounds of this mask on every block of the plan.

        The tokens of a block of the plan lie in a rectangle of listed blocks. A summed-area table
        counts how many blocks of the rectangle are listed.

        Args:
          q: Bounds of the queries' fields.
          k: Bounds of the keys' fields.
          tiling: The blocks of the plan, which may differ from the listed blocks.

        Returns:
          `Truth` of arrays `[*B | 1, N | 1, nq, nk]`.
        """
        seen = self._map(k.positions.lo.ndim)
        table = jnp.cumsum(seen, axis=-2, dtype=jnp.int32)
        table = jnp.cumsum(table, axis=-1, dtype=jnp.int32)
        table = jnp.pad(table, [(0, 0)] * (seen.ndim - 2) + [(1, 0), (1, 0)])
        bounds = getattr(q, self.rows)
        top, bottom, rows_inside = _span(bounds, self.query_block_size, seen.shape[-2])
        left, right, columns_inside = _span(k.positions, self.block_size, seen.shape[-1])
        count = _look_up(table, bottom, right) - _look_up(table, bottom, left)
        count = count - _look_up(table, top, right) + _look_up(table, top, left)
        full = count == (bottom - top) * (right - left)
        return Truth(count > 0, rows_inside & columns_inside & full)

    def _map(self, ndim: int) -> Bool[Array, "*B N nq nk"]:
        """True for the listed blocks, in an array of the rank of the records."""
        seen = self.blocks.values
        return seen.reshape((1,) * (ndim - seen.ndim) + seen.shape)

    def __repr__(self) -> str:
        parts = [show_value(self.blocks.values), f"block_size={self.block_size}"]
        if self.query_block_size != self.block_size:
            parts.append(f"query_block_size={self.query_block_size}")
        if self.rows != "positions":
            parts.append(f"rows={self.rows!r}")
        return f"Selected({', '.join(parts)})"


def _look_up(
    table: Shaped[Array, "..."], row: Int[Array, "..."], column: Int[Array, "..."]
) -> Shaped[Array, "..."]:
    """Entries of `[..., X, Y]` at all pairs of rows `[..., T, 1]` and columns `[..., 1, S]`."""
    rows = jnp.take_along_axis(table, row, axis=-2)
    return jnp.take_along_axis(rows, column, axis=-1)


def _span(bounds: Range, size: int, count: int) -> tuple[Array, Array, Array]:
    """The first block, the block after the last, and whether all lie in 0 ... count − 1."""
    first, last = bounds.lo // size, bounds.hi // size
    start = jnp.clip(first, 0, count)
    # 1 is added after clipping, as `last` is the largest integer if nothing is known.
    stop = jnp.maximum(jnp.clip(last, -1, count - 1) + 1, start)
    return start, stop, (first >= 0) & (last < count)


def _check_blocks(blocks: Any) -> Int[Array, "..."]:
    if isinstance(blocks, list | tuple):
        blocks = integers("Selected: blocks", blocks)
    dtype = getattr(blocks, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        kind = type(blocks).__name__ if dtype is None else dtype
        raise TypeError(f"Selected: blocks must be an array of integers, got {kind}.")
    if blocks.ndim < 2:
        raise ValueError(
            f"Selected: blocks must be [*B, N, nq, topk], or [nq, topk], got {list(blocks.shape)}."
        )
    return blocks[None] if blocks.ndim == 2 else blocks


def _check_range(blocks: Int[Array, "..."], num_key_blocks: int) -> None:
    numbers = known(blocks)
    if numbers is None or not numbers.size:
        return
    if numbers.min() < -1 or numbers.max() >= num_key_blocks:
        raise ValueError(
            f"Selected: blocks must be in −1 ... {num_key_blocks - 1}, got {numbers.min()} ... "
            f"{numbers.max()}. Pass a larger num_key_blocks than {num_key_blocks}."
        )


def _to_map(blocks: Int[Array, "*B N nq topk"], num_key_blocks: int) -> Bool[Array, "*B N nq nk"]:
    seen = jnp.zeros((*blocks.shape[:-1], num_key_blocks), bool)
    columns = jnp.where(blocks < 0, num_key_blocks, blocks)  # an index beyond the map is dropped
    return jnp.put_along_axis(seen, columns, True, axis=-1, inplace=False, mode="drop")
