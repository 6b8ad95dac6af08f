"""Coordinates: what masks and score modifiers know of a token."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flax_attn._checks import as_integer, broadcasts_to
from flax_attn._fields import (
    as_booleans,
    as_feature,
    as_length,
    as_positions,
    as_segments,
    check_index,
)
from flax_attn._integers import as_bound, as_ids, integers, saturate
from flax_attn._jax import vary_together
from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import Record

__all__ = ["Aligned", "Coords", "PerHead", "unzigzag", "zigzag"]


def __dir__() -> list[str]:
    return __all__


Tree = TypeVar("Tree")
Index = slice | Int[Array, "X"] | np.ndarray


@pytree
class Aligned:
    """An array whose axes follow those of attention, so that a tile of it can be cut.

    As a parameter of `scores.score_mod` or `masks.relation` it carries what differs between batch
    elements, heads, queries or keys. The function reads `values`, which is then the part for the
    scores at hand, `[..., heads, ...]`, with the other axes as they are named.

    Attributes:
      values: The array; an axis of size 1 broadcasts.
      axes: One letter per axis: `b` (all batch axes together), `n` query heads, `k` key heads,
        `t` queries, `s` keys, and any other letter for an axis that is never cut. Those of
        parameters begin with `b` and `n`: `"bn"`, `"bnt"`, `"bns"`, `"bnts"`, `"bntr"`; where one
        of the two is left out, the function sees an axis of size 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> from flax_attn.coords import Aligned
      >>> def scaled(scores, q, k, head_ids, *, factor):
      ...     return scores * factor.values[..., None]
      >>> per_query = jnp.ones((2, 1, 16))  # [B, 1, T]: the same for all heads
      >>> scores.score_mod(scaled, factor=Aligned(per_query, "bnt"))
      scaled(factor=Aligned(values=float32[2, 1, 16], axes='bnt'))
    """

    values: Any
    axes: str = static()


@pytree
class PerHead:
    """A feature of tokens that differs between query heads.

    Attributes:
      values: `[*B, T, N]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Coords
      >>> from flax_attn.coords import PerHead
      >>> Coords.arange(5).with_features(decay=PerHead(jnp.zeros((5, 2))))
      Coords(positions=int32[5], decay=PerHead(values=float32[5, 2]))
    """

    values: Float[Array, "*B T N"] | Int[Array, "*B T N"]


@jax.tree_util.register_pytree_with_keys_class
class Coords:
    """What each token carries: its position, segment, validity, and anything you name.

    A mask or score modifier is a relation between the coordinates of a query and of a key, so it
    means the same in whatever order, part or cache the tokens are. Slicing and gathering act on the
    token axis of every field.

    Attributes:
      positions: Position of each token `[*B, T]`, or `[T]` for all batch elements. To masks and
        score modifiers, positions beyond ±(2³⁰ − 1) count as these ends, so that no difference of
        two wraps around: a sentinel such as −2³¹ is far from every token. Count times from a
        near origin, or give them as a feature.
      segment_ids: Number of the sequence that a token belongs to `[*B, T]`. Where a number is
        known not to fit int32, it is refused, as in integer features.
      valid: False for tokens that take no part, as padding `[*B, T]`: no query sees them as keys,
        and as queries they give 0, whatever the mask.
      numbers: Number of each token in its sequence `[*B, T]`, 0 ... T − 1 by default, whatever the
        positions are. Slices and gathers keep it, and only dropout reads it: masks and score
        modifiers do not see it. Give it where these tokens are a part of a longer sequence;
        `Coords.arange(length, offset)` numbers them offset, offset + 1, ...
      **features: Further fields `[*B, T]`, or `PerHead([*B, T, N])`.

    Example:
      >>> from flax_attn import Coords
      >>> import jax.numpy as jnp
      >>> Coords.from_segments(jnp.array([1, 1, 1, 2, 2]))
      Coords(positions=int32[5], segment_ids=int32[5])
      >>> Coords.arange(3, offset=7).positions
      Array([7, 8, 9], dtype=int32)
    """

    def __init__(
        self,
        positions: Int[Array, "*#B T"],
        segment_ids: Int[Array, "*#B T"] | None = None,
        valid: Bool[Array, "*#B T"] | None = None,
        *,
        numbers: Int[Array, "*#B T"] | None = None,
        **features: Any,
    ) -> None:
        if isinstance(positions, Coords):
            raise TypeError("Coords: positions must be integers, got Coords. Use them as they are.")
        self.positions = as_positions(positions)
        self.segment_ids = None if segment_ids is None else as_segments(segment_ids)
        self.valid = None if valid is None else as_booleans("valid", valid)
        self.features = {}
        for name, values in features.items():
            if hasattr(Coords, name) or name in RESERVED:
                raise ValueError(f"Coords: a feature may not be called {name!r}.")
            array = values.values if isinstance(values, PerHead) else values
            array = as_feature(name, array)
            self.features[name] = PerHead(array) if isinstance(values, PerHead) else array
        self._check()
        self.numbers = self._numbers(numbers)

    def _check(self) -> None:
        if self.positions.ndim == 0:
            raise ValueError(
                "Coords: positions must be [*B, T], got a single number. For positions 0, 1, ... "
                "write Coords.arange(length)."
            )
        length = self.positions.shape[-1]  # len() would want it to be known
        for name, values in self.fields().items():
            array = values.values if isinstance(values, PerHead) else values
            tokens = array.shape[:-1] if isinstance(values, PerHead) else array.shape
            if not tokens or tokens[-1] != length:
                own = name in ("segment_ids", "valid")
                fix = f" Wrap what differs between heads, [*B, T, N]: PerHead({name})."
                raise ValueError(
                    f"Coords: {name} must be [*B, T] with T = {length}, the number of positions, "
                    f"got {list(array.shape)}.{'' if own else fix}"
                )

    def _numbers(self, numbers: Any) -> Any:
        """The given numbers, or 0 ... T − 1, in the shape of the positions."""
        shape = self.positions.shape
        if numbers is None:
            return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        numbers = saturate(as_ids("Coords: numbers", numbers))
        if numbers.shape[-1:] != shape[-1:]:
            raise ValueError(
                f"Coords: numbers must be [*B, T] with T = {shape[-1]}, the number of positions, "
                f"got {list(numbers.shape)}."
            )
        if broadcasts_to(numbers.shape, shape):
            numbers = jnp.broadcast_to(numbers, shape)
        # Within `shard_map`, numbers that are given differ between devices as positions do. Those
        # that are counted here do not, and attention can tell.
        return vary_together([self.positions, numbers])[1]

    def __len__(self) -> int:
        return self.positions.shape[-1]

    def fields(self) -> dict[str, Any]:
        """Every field that is there, by name, as masks and score modifiers see them."""
        own = {"positions": self.positions, "segment_ids": self.segment_ids, "valid": self.valid}
        return {name: x for name, x in own.items() if x is not None} | self.features

    def with_features(self, **features: Any) -> "Coords":
        """These coordinates with more features, or others.

        Args:
          **features: Fields `[*B, T]` or `PerHead([*B, T, N])`; also `segment_ids`, `valid` and
            `numbers`.

        Returns:
          New coordinates, of tokens with the same numbers.
        """
        return Coords(**(self.fields() | {"numbers": self.numbers} | features))

    def __getitem__(self, index: Index) -> "Coords":
        """The tokens of a slice, or of an array of numbers `[X]`."""
        index = check_index(index, self.positions.shape[-1])

        def take(values: Any) -> Any:
            if isinstance(values, PerHead):
                return PerHead(_take(values.values, index, -2))
            return _take(values, index, -1)

        fields = self.fields() | {"numbers": self.numbers}
        return Coords(**{name: take(values) for name, values in fields.items()})

    def __getattr__(self, name: str) -> Any:
        features = self.__dict__.get("features", {})
        if name in features:
            raise AttributeError(
                f"Coords has no attribute {name!r}, but a feature: coords.features[{name!r}]."
            )
        raise AttributeError(f"Coords has no attribute or feature {name!r}.")

    def __repr__(self) -> str:
        parts = [f"{name}={show_value(values)}" for name, values in self.fields().items()]
        return f"Coords({', '.join(parts)})"

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Children with their names, for JAX."""
        names = ("positions", "segment_ids", "valid", "features", "numbers")
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Sequence[Any]) -> "Coords":
        """From children, for JAX."""
        self = object.__new__(cls)
        self.positions, self.segment_ids, self.valid, self.features, self.numbers = children
        return self

    @classmethod
    def arange(cls, length: int, offset: int | Int[Array, "..."] = 0) -> "Coords":
        """Positions offset, offset + 1, ...

        Args:
          length: Number of tokens T.
          offset: Position of the first; an array `[*B]` for one per sequence.

        Returns:
          Coordinates `[T]`, or `[*B, T]`; the tokens' numbers are their positions.
        """
        length = as_length("Coords.arange", "length", length)
        offset = jnp.asarray(as_place(as_bound("Coords.arange: offset", offset)))
        index = jnp.arange(length, dtype=jnp.int32).reshape((1,) * offset.ndim + (-1,))
        positions = offset[..., None] + index
        traced = isinstance(positions, jax.core.Tracer)
        numbers = positions if traced else jnp.copy(positions)  # buffers may be donated, but once
        return cls(positions, numbers=numbers)

    @classmethod
    def from_segments(cls, segment_ids: Int[Array, "*B T"], restart: bool = False) -> "Coords":
        """Several sequences packed into one, told apart by their numbers.

        Args:
          segment_ids: Number of the sequence of each token `[*B, T]`.
          restart: Whether positions count from 0 in each run of equal numbers.

        Returns:
          Coordinates `[*B, T]`.
        """
        segment_ids = as_segments(segment_ids)
        if segment_ids.ndim == 0:
            raise ValueError(
                "Coords.from_segments: segment_ids must be [*B, T], got a single number."
            )
        index = jnp.broadcast_to(
            jnp.arange(segment_ids.shape[-1], dtype=jnp.int32), segment_ids.shape
        )
        if not restart:
            return cls(index, segment_ids)
        first = jnp.ones((*segment_ids.shape[:-1], 1), bool)
        starts = jnp.concatenate([first, segment_ids[..., 1:] != segment_ids[..., :-1]], axis=-1)
        begin = jax.lax.cummax(jnp.where(starts, index, 0), axis=index.ndim - 1)
        return cls(index - begin, segment_ids, numbers=index)

    @classmethod
    def from_lengths(cls, lengths: Int[Array, "*B"], length: int) -> "Coords":
        """Sequences padded at their end.

        Args:
          lengths: Number of tokens that count `[*B]`.
          length: Number of tokens with padding T.

        Returns:
          Coordinates `[*B, T]` whose `valid` is False from `lengths` on.
        """
        lengths = as_bound("Coords.from_lengths: lengths", lengths)
        length = as_length("Coords.from_lengths", "length", length)
        index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (*lengths.shape, length))
        return cls(index, valid=index < lengths[..., None])

    @classmethod
    def grid(cls, height: int, width: int) -> "Coords":
        """The pixels of a picture, row by row, with the features `row` and `col`.

        Args:
          height: Number of rows H.
          width: Number of columns W.

        Returns:
          Coordinates `[H · W]`.
        """
        height = as_length("Coords.grid", "height", height)
        width = as_length("Coords.grid", "width", width)
        index = jnp.arange(height * width, dtype=jnp.int32)
        return cls(index, row=index // width, col=index % width)

    @classmethod
    def tree(cls, parents: Sequence[int] | np.ndarray) -> "Coords":
        """The nodes of a tree, such as drafts of speculative decoding, for the mask `Tree`.

        Args:
          parents: Number of each node's parent, −1 for a root. Known numbers, not traced.

        Returns:
          Coordinates `[T]` with the depth as position (roots at 0) and the features `enter` and
          `leave`: a node's descendants are those with `enter <= enter' < leave`.
        """
        if isinstance(parents, jax.core.Tracer):
            raise TypeError(
                "Coords.tree: parents must be known numbers, got a traced array. Make the "
                "coordinates outside of jit, and pass them in."
            )
        parents = np.asarray(integers("Coords.tree: parents", parents))
        count = parents.size
        if parents.ndim != 1 or ((parents < -1) | (parents >= count)).any():
            raise ValueError(
                f"Coords.tree: parents must be one number per node in −1 ... {count - 1}, "
                f"got {parents.tolist()}."
            )
        children: list[list[int]] = [[] for _ in range(count)]
        for node, parent in enumerate(parents):
            if parent >= 0:
                children[parent].append(node)
        depth, enter, leave = (np.zeros(count, np.int32) for _ in range(3))
        clock = 0
        stack = [(node, False) for node in np.flatnonzero(parents == -1)[::-1]]
        while stack:
            node, done = stack.pop()
            if done:
                leave[node] = clock
                continue
            parent = parents[node]
            depth[node] = 0 if parent == -1 else depth[parent] + 1
            enter[node] = clock
            clock += 1
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(children[node]))
        if clock != count:
            raise ValueError(f"Coords.tree: parents must not form a cycle, got {parents.tolist()}.")
        return cls(jnp.asarray(depth), enter=jnp.asarray(enter), leave=jnp.asarray(leave))


RESERVED = {"head_ids", "features", "numbers", "positions", "segment_ids", "valid"}


def zigzag(tree: Tree, shards: int, axis: int = 1) -> Tree:
    """Reorder tokens so that equal shards of a causal sequence have equal work.

    The sequence is cut into 2 · shards parts; shard i holds part i and part 2 · shards − 1 − i.

    Args:
      tree: Arrays with a token axis; or `Coords`, whose own token axis is taken.
      shards: Number of shards.
      axis: The token axis of arrays.

    Returns:
      The same tree in another order; `unzigzag` undoes it.

    Raises:
      ValueError: If 2 · shards does not divide the number of tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn.coords import zigzag
      >>> zigzag(jnp.arange(8), 2, axis=0)
      Array([0, 1, 6, 7, 2, 3, 4, 5], dtype=int32)
    """
    return _permute("zigzag", tree, shards, axis, inverse=False)


def unzigzag(tree: Tree, shards: int, axis: int = 1) -> Tree:
    """Undo `zigzag`.

    Args:
      tree: As in `zigzag`.
      shards: As in `zigzag`.
      axis: As in `zigzag`.

    Returns:
      The tree in the order of the sequence.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn.coords import unzigzag, zigzag
      >>> unzigzag(zigzag(jnp.arange(8), 2, axis=0), 2, axis=0)
      Array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
    """
    return _permute("unzigzag", tree, shards, axis, inverse=True)


def _permute(function: str, tree: Tree, shards: int, axis: int, inverse: bool) -> Tree:
    shards = as_integer(function, "shards", shards)

    def order(length: int) -> np.ndarray:
        if shards < 1 or length % (2 * shards):
            raise ValueError(
                f"{function}: the number of tokens must be a multiple of 2 · shards = "
                f"{2 * shards}, got {length}. Pad it, and mark the padding in Coords.valid."
            )
        parts = np.arange(length).reshape(2 * shards, -1)
        mine = [part for i in range(shards) for part in (i, 2 * shards - 1 - i)]
        ids = parts[mine].reshape(-1)
        return np.argsort(ids) if inverse else ids

    def permute(x: Any) -> Any:
        if isinstance(x, Coords):
            return x[order(len(x))]
        return jnp.take(x, order(x.shape[axis]), axis=axis)

    return jax.tree.map(permute, tree, is_leaf=lambda x: isinstance(x, Coords))


def _take(values: Any, index: Index, axis: int) -> Any:
    if isinstance(index, slice):
        return values[..., index] if axis == -1 else values[..., index, :]
    return jnp.take(values, index, axis=axis)


def as_place(values: Any) -> Any:
    """Integers as int32 within ±(2³⁰ − 1), so that no difference wraps; other numbers as they are.

    Masks and score modifiers see positions so, once per token.
    """
    if not jnp.issubdtype(values.dtype, jnp.integer):
        return values
    if jnp.iinfo(values.dtype).bits < 32:
        return values.astype(jnp.int32)
    return jax.lax.clamp(np.int32(-FARTHEST), jnp.asarray(saturate(values)), np.int32(FARTHEST))


FARTHEST = 2**30 - 1


def to_record(coords: Coords, side: str, batch_ndim: int, head_ids: Any = None) -> Record:
    """The coordinates as masks and score modifiers see them, token by token.

    Args:
      coords: Coordinates of T tokens.
      side: `"query"` or `"key"`.
      batch_ndim: Number of batch axes of the attention, to which all fields are expanded.
      head_ids: Global numbers of the query heads `[N]`; for queries only.

    Returns:
      A record of fields `[*B | 1, N | 1, T, 1]` for queries, `[*B | 1, N | 1, 1, T]` for keys.
    """
    token_axes = (-1, 1) if side == "query" else (1, -1)

    def expand(values: Any) -> Any:
        if isinstance(values, PerHead):
            array = jnp.swapaxes(values.values, -1, -2)
        else:
            array = values[..., None, :]
        batch = array.shape[:-2]
        if len(batch) > batch_ndim:
            raise ValueError(
                f"the {side} coordinates have {len(batch)} batch axes, {list(batch)}, but the "
                f"attention has {batch_ndim}."
            )
        ones = (1,) * (batch_ndim - len(batch))
        heads, length = array.shape[-2:]
        return array.reshape(*ones, *batch, heads, *(length if n == -1 else 1 for n in token_axes))

    fields = {name: expand(values) for name, values in coords.fields().items()}
    fields["positions"] = as_place(fields["positions"])
    if head_ids is not None:
        fields["head_ids"] = head_ids.reshape((1,) * batch_ndim + (-1, 1, 1))
    return Record(side, fields)
