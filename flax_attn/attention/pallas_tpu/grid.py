"""The grid of a TPU kernel, and how arrays are cut into its blocks."""

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128


class Rows(enum.Enum):
    """What the rows of a tile are; its columns are the other. The letter of their axis."""

    QUERIES = "t"
    KEYS = "s"


class Operand(NamedTuple):
    """An array that a kernel reads.

    Attributes:
      values: The array. The lengths of queries and keys are multiples of the block sizes.
      axes: One letter per axis. The kernel reads its part as

        bntd, bksd  a matrix `[rows or columns, d]`
        bnt, bns, bks  a vector over rows or columns
        bnts        a tile `[rows, columns]`
        bnw         a tile, from an array over distances
        bn          a number
    """

    values: jax.Array
    axes: str


class Result(NamedTuple):
    """An array that a kernel writes, block of rows by block of rows.

    Attributes:
      shape: Its shape.
      axes: One letter per axis: bntd, bksd, bnt or bns; bnw for sums over distances.
      dtype: Its dtype.
    """

    shape: tuple[int, ...]
    axes: str
    dtype: Any


class Grid(NamedTuple):
    """The sizes of a sweep.

    Attributes:
      rows: What the rows are.
      batch: B.
      heads: N and K.
      lengths: T and S, multiples of `block`.
      block: Numbers of queries and of keys in a block.
      columns: Number of columns of a block that are computed at once.
    """

    rows: Rows
    batch: int
    heads: tuple[int, int]
    lengths: tuple[int, int]
    block: tuple[int, int]
    columns: int

    @property
    def groups(self) -> int:
        """G, the query heads of a key head."""
        return self.heads[0] // self.heads[1]

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of blocks of queries and of keys."""
        return self.lengths[0] // self.block[0], self.lengths[1] // self.block[1]

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        query, key = self.block
        return (query if self.rows is Rows.QUERIES else key), self.columns

    @property
    def starts(self) -> range:
        """The first columns of the tiles of a block."""
        query, key = self.block
        return range(0, key if self.rows is Rows.QUERIES else query, self.columns)

    @property
    def outer(self) -> tuple[int, int, int, int]:
        """Batch elements, heads, blocks of rows, and query heads of a key head."""
        if self.rows is Rows.QUERIES:
            return self.batch, self.heads[0], self.counts[0], 1
        return self.batch, self.heads[1], self.counts[1], self.groups


class Index(NamedTuple):
    """The indices of a point of the grid: `Grid.outer`, and the number of the visit."""

    batch: Any
    head: Any
    row: Any
    member: Any
    step: Any


class Block(NamedTuple):
    """A block of pairs: the indices of what it belongs to, along each axis."""

    batch: Any
    query_head: Any
    key_head: Any
    query: Any
    key: Any

    def place(self, axes: str, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """The indices of the block of an array. An axis of size 1 is the same for all."""
        b, n, k, t, s = self
        indices = {"b": b, "n": n, "k": k, "t": t, "s": s}
        return tuple(
            indices.get(letter, 0) if size > 1 else 0
            for letter, size in zip(axes, shape, strict=True)
        )


class Cut(NamedTuple):
    """How arrays are cut into blocks.

    Attributes:
      grid: The grid.
      lists: The shape of the lists of visits, `[B | 1, N | 1, rows, steps]`.
    """

    grid: Grid
    lists: tuple[int, int, int, int]

    def row(self, at: Index) -> Any:
        """The number of a block of rows in the lists of visits."""
        batch, heads, rows, _ = self.lists
        head = at.head if self.grid.rows is Rows.QUERIES else self._query_head(at)
        return ((at.batch if batch > 1 else 0) * heads + (head if heads > 1 else 0)) * rows + at.row

    def block(self, at: Index, visits: Any) -> Block:
        """The block that is visited."""
        column = lax.div(visits[self.row(at) * self.lists[-1] + at.step], 2)
        if self.grid.rows is Rows.QUERIES:
            return Block(at.batch, at.head, lax.div(at.head, self.grid.groups), at.row, column)
        return Block(at.batch, self._query_head(at), at.head, column, at.row)

    def _query_head(self, at: Index) -> Any:
        return at.head * self.grid.groups + at.member

    def specs(self, axes: str, shape: tuple[int, ...]) -> list[pl.BlockSpec]:
        """The blocks of an array that is stored by `stored`, one for each array that it gives."""
        if axes == "bn":
            return [pl.BlockSpec(memory_space=pltpu.SMEM)]
        if axes == "bnw":
            return [self._distances(shape, offset) for offset in (0, 1)]
        query, key = self.grid.block
        sizes = {"b": None, "n": None, "k": None, "t": query, "s": key}
        block = tuple(
            1 if size == 1 and letter in "ts" else sizes.get(letter, size)
            for letter, size in zip(axes, shape, strict=True)
        )

        def index(*arguments: Any) -> tuple[Any, ...]:
            *at, visits, _ = arguments
            return _as_row(self.block(Index(*at), visits).place(axes, shape), axes, 0)

        return [pl.BlockSpec(_as_row(block, axes, 1), index)]

    def result_spec(self, result: Result) -> pl.BlockSpec:
        """The blocks of a result. Sums over distances are one block for each head."""
        if result.axes != "bnw":
            return self.specs(result.axes, result.shape)[0]
        block = (None, None, 1, result.shape[-1])
        return pl.BlockSpec(block, lambda b, n, *_: (b, n, 0, 0))

    def result_shape(self, result: Result) -> jax.ShapeDtypeStruct:
        """A result as its kernel writes it."""
        return jax.ShapeDtypeStruct(_as_row(result.shape, result.axes, 1), result.dtype)

    def _distances(self, shape: tuple[int, ...], offset: int) -> pl.BlockSpec:
        """One of the two blocks of distances of a block of pairs."""

        def index(*arguments: Any) -> tuple[Any, ...]:
            *at, visits, _ = arguments
            block = self.block(Index(*at), visits)
            return (*block.place("bn", shape[:2]), 0, self.first_distance(block) + offset)

        return pl.BlockSpec((None, None, 1, self.grid.block[0]), index)

    def first_distance(self, block: Block) -> Any:
        """The first block of distances of a block of pairs."""
        return block.key - block.query + self.grid.counts[0] - 1


def _as_row(shape: tuple[Any, ...], axes: str, one: int) -> tuple[Any, ...]:
    """The shape, or the place, of a vector that is stored as a matrix with one row."""
    return (*shape[:2], one, *shape[2:]) if len(axes) == 3 else shape


def stored(operand: Operand) -> list[jax.Array]:
    """An operand as a kernel takes it: vectors as rows, an array over distances twice."""
    values = operand.values.reshape(_as_row(operand.values.shape, operand.axes, 1))
    return [values] * (2 if operand.axes == "bnw" else 1)


def names_of(operands: Mapping[str, Operand]) -> list[str]:
    """The names of what `stored` gives of some operands."""
    return [
        name
        for key, operand in operands.items()
        for name in ((key, second(key)) if operand.axes == "bnw" else (key,))
    ]


def second(name: str) -> str:
    """The name of the second block of an array over distances."""
    return f"{name}, second"
