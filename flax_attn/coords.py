"""Coordinates: the fields of a token that masks and score modifiers read."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flax_attn._checks import broadcasts_to
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
from flax_attn._orders import inverse, preorder, striped_order, zigzag_order
from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import Record

__all__ = ["Aligned", "Coords", "PerHead", "striped", "unstriped", "unzigzag", "zigzag"]


def __dir__() -> list[str]:
    return __all__


Tree = TypeVar("Tree")
Index = slice | Int[Array, "X"] | np.ndarray


@pytree
class Aligned:
    """An array whose axes are axes of attention, so that it is cut into the same tiles.

    As a parameter of `scores.score_mod` or `masks.relation`, it holds numbers that differ between
    batch elements, heads, queries or keys. The function reads `values`, which is then the part for
    the current tile of scores, `[..., heads, ...]` followed by the other axes as they are named.

    Attributes:
      values: The array; an axis of size 1 broadcasts.
      axes: One letter per axis: `b` for all batch axes together, `n` query heads, `k` key heads,
        `t` queries, `s` keys, and any other letter for an axis that is not cut. The axes of
        parameters begin with `b` and `n`: `"bn"`, `"bnt"`, `"bns"`, `"bnts"`, `"bntr"`. If one of
        the two is omitted, the function gets an axis of size 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import scores
      >>> from flax_attn.coords import Aligned
      >>> def scaled(scores, q, k, head_ids, *, factor):
      ...     return scores * factor.values[..., None]
      >>> per_query = jnp.ones((2, 1, 16))  # [B, 1, T]: equal for all heads
      >>> scores.score_mod(scaled, factor=Aligned(per_query, "bnt"))
      scaled(factor=Aligned(values=float32[2, 1, 16], axes='bnt'))
    """

    values: Any
    axes: str = static()


@pytree
class PerHead:
    """A feature of tokens with one value per query head.

    Attributes:
      values: The values `[*B, T, N]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn import Coords
      >>> from flax_attn.coords import PerHead
      >>> Coords.arange(5).with_features(decay=PerHead(jnp.zeros((5, 2))))
      Coords(positions=int32[5], decay=PerHead(values=float32[5, 2]))
    """

    values: Float[Array, "*B T N"] | Int[Array, "*B T N"]


@pytree
class Coords:
    """The fields of tokens: positions, segments, validity, and features that you name.

    Masks and score modifiers are relations between the coordinates of a query and of a key. So they
    give the same result in any order of the tokens, on any device and in any cache. Slicing and
    gathering act on the token axis of every field.

    Attributes:
      positions: Position of each token `[*B, T]`, or `[T]` for all batch elements. Masks and score
        modifiers see positions clamped to ±(2³⁰ − 1), so that no difference of two wraps around.
        Count times from a near origin, or pass them as a feature.
      segment_ids: Number of the sequence that a token belongs to `[*B, T]`. A number that is known
        not to fit int32 is refused, here and in integer features.
      valid: False for tokens to ignore, such as padding `[*B, T]`. No query attends to them, and
        their own output is 0, whatever the mask is.
      numbers: Number of each token in its sequence `[*B, T]`; 0 ... T − 1 by default, whatever the
        positions are. Slices and gathers keep it. Only dropout reads it; masks and score modifiers
        cannot. Pass it if these tokens are a part of a longer sequence.
        `Coords.arange(length, offset)` numbers the tokens offset, offset + 1, ...
      **features: Further fields `[*B, T]`, or `PerHead([*B, T, N])`.

    Example:
      >>> from flax_attn import Coords
      >>> import jax.numpy as jnp
      >>> Coords.from_segments(jnp.array([1, 1, 1, 2, 2]))
      Coords(positions=int32[5], segment_ids=int32[5])
      >>> Coords.arange(3, offset=7).positions
      Array([7, 8, 9], dtype=int32)
    """

    positions: Any
    segment_ids: Any
    valid: Any
    features: dict[str, Any]
    numbers: Any

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
            raise TypeError("Coords: positions must be integers, got Coords. Use it as it is.")
        segment_ids = None if segment_ids is None else as_segments(segment_ids)
        valid = None if valid is None else as_booleans("valid", valid)
        for name, values in features.items():
            if hasattr(Coords, name) or name in RESERVED:
                raise ValueError(f"Coords: a feature must not be called {name!r}. Rename it.")
            array = values.values if isinstance(values, PerHead) else values
            array = as_feature(name, array)
            features[name] = PerHead(array) if isinstance(values, PerHead) else array
        object.__setattr__(self, "positions", as_positions(positions))
        object.__setattr__(self, "segment_ids", segment_ids)
        object.__setattr__(self, "valid", valid)
        object.__setattr__(self, "features", features)
        self._check()
        object.__setattr__(self, "numbers", self._numbers(numbers))

    def _check(self) -> None:
        if self.positions.ndim == 0:
            raise ValueError(
                "Coords: positions must be [*B, T], got a single number. For positions 0, 1, ... "
                "write Coords.arange(length)."
            )
        length = self.positions.shape[-1]  # not len(self), as it may be symbolic
        for name, values in self.fields().items():
            array = values.values if isinstance(values, PerHead) else values
            tokens = array.shape[:-1] if isinstance(values, PerHead) else array.shape
            if not tokens or tokens[-1] != length:
                is_feature = name in self.features
                fix = f" For one value per head, [*B, T, N], write PerHead({name})."
                raise ValueError(
                    f"Coords: {name} must be [*B, T] with T = {length}, the number of positions, "
                    f"got {list(array.shape)}.{fix if is_feature else ''}"
                )

    def _numbers(self, numbers: Any) -> Any:
        """The given numbers, or 0 ... T − 1, with the shape of the positions."""
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
        # Inside `shard_map`, given numbers vary over the same mesh axes as the positions. Default
        # numbers vary over none, which attention can tell and refuses where they are needed.
        return vary_together([self.positions, numbers])[1]

    def __len__(self) -> int:
        return self.positions.shape[-1]

    def fields(self) -> dict[str, Any]:
        """The fields that masks and score modifiers can read, by name."""
        own = {"positions": self.positions, "segment_ids": self.segment_ids, "valid": self.valid}
        return {name: x for name, x in own.items() if x is not None} | self.features

    def with_features(self, **features: Any) -> "Coords":
        """Copy these coordinates with features added or replaced.

        Args:
          **features: Fields `[*B, T]` or `PerHead([*B, T, N])`; also `segment_ids`, `valid` and
            `numbers`.

        Returns:
          New coordinates. The tokens keep their numbers.
        """
        return Coords(**(self.fields() | {"numbers": self.numbers} | features))

    def __getitem__(self, index: Index) -> "Coords":
        """The tokens of a slice, or of an array of indices `[X]`."""
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
                f"Coords has no attribute {name!r}. It is a feature: coords.features[{name!r}]."
            )
        raise AttributeError(f"Coords has no attribute or feature {name!r}.")

    def __repr__(self) -> str:
        parts = [f"{name}={show_value(values)}" for name, values in self.fields().items()]
        return f"Coords({', '.join(parts)})"

    @classmethod
    def arange(cls, length: int, offset: int | Int[Array, "..."] = 0) -> "Coords":
        """Tokens at the positions offset, offset + 1, ...

        Args:
          length: Number of tokens T.
          offset: Position of the first token; an array `[*B]` for one offset per sequence.

        Returns:
          Coordinates `[T]` or `[*B, T]`. The numbers of the tokens are their positions.
        """
        length = as_length("Coords.arange", "length", length)
        offset = jnp.asarray(clamp_positions(as_bound("Coords.arange: offset", offset)))
        index = jnp.arange(length, dtype=jnp.int32).reshape((1,) * offset.ndim + (-1,))
        positions = offset[..., None] + index
        traced = isinstance(positions, jax.core.Tracer)
        numbers = positions if traced else jnp.copy(positions)  # a buffer can be donated only once
        return cls(positions, numbers=numbers)

    @classmethod
    def from_segments(cls, segment_ids: Int[Array, "*B T"], restart: bool = False) -> "Coords":
        """Several sequences that are packed into one.

        Args:
          segment_ids: Number of the sequence of each token `[*B, T]`.
          restart: If True, positions start at 0 in each run of equal numbers.

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
        """Sequences that are padded at the end.

        Args:
          lengths: Number of valid tokens of each sequence `[*B]`.
          length: Number of tokens T, with padding.

        Returns:
          Coordinates `[*B, T]`. `valid` is False from `lengths` on.
        """
        lengths = as_bound("Coords.from_lengths: lengths", lengths)
        length = as_length("Coords.from_lengths", "length", length)
        index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (*lengths.shape, length))
        return cls(index, valid=index < lengths[..., None])

    @classmethod
    def grid(cls, height: int, width: int) -> "Coords":
        """The pixels of an image, row by row, with the features `row` and `col`.

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
        """The nodes of a tree for the mask `Tree`, such as the drafts of speculative decoding.

        Args:
          parents: Index of the parent of each node; −1 for a root. They must not be traced.

        Returns:
          Coordinates `[T]` whose position is the depth (0 for roots), with the features `enter` and
          `leave`. The descendants of a node are the nodes with `enter <= enter' < leave`.
        """
        if isinstance(parents, jax.core.Tracer):
            raise TypeError(
                "Coords.tree: parents must be known numbers, got a traced array. Make the "
                "coordinates outside of jit, and pass them as an argument."
            )
        parents = np.asarray(integers("Coords.tree: parents", parents))
        count = parents.size
        if parents.ndim != 1 or ((parents < -1) | (parents >= count)).any():
            raise ValueError(
                f"Coords.tree: parents must be one number per node in −1 ... {count - 1}, "
                f"got {parents.tolist()}."
            )
        numbering = preorder(parents)
        if numbering is None:
            raise ValueError(f"Coords.tree: parents must not form a cycle, got {parents.tolist()}.")
        depth, enter, leave = (jnp.asarray(x) for x in numbering)
        return cls(depth, enter=enter, leave=leave)


RESERVED = {"head_ids", "features", "numbers", "positions", "segment_ids", "valid"}


def zigzag(tree: Tree, shards: int, axis: int = 1) -> Tree:
    """Reorder tokens so that all shards of a causal sequence have the same amount of work.

    The sequence is cut into 2 · shards parts. Shard i holds the parts i and 2 · shards − 1 − i.

    Args:
      tree: A pytree of arrays and `Coords`. `Coords` are reordered along their token axis.
      shards: Number of shards.
      axis: The token axis of the arrays.

    Returns:
      The pytree with its tokens reordered. `unzigzag` is the inverse.

    Raises:
      ValueError: If 2 · shards does not divide the number of tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn.coords import zigzag
      >>> zigzag(jnp.arange(8), 2, axis=0)
      Array([0, 1, 6, 7, 2, 3, 4, 5], dtype=int32)
    """
    return _reorder(tree, axis, zigzag_order("zigzag", shards))


def unzigzag(tree: Tree, shards: int, axis: int = 1) -> Tree:
    """The inverse of `zigzag`.

    Args:
      tree: See `zigzag`.
      shards: See `zigzag`.
      axis: See `zigzag`.

    Returns:
      The pytree with its tokens in the order of the sequence.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn.coords import unzigzag, zigzag
      >>> unzigzag(zigzag(jnp.arange(8), 2, axis=0), 2, axis=0)
      Array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
    """
    return _reorder(tree, axis, inverse(zigzag_order("unzigzag", shards)))


def striped(tree: Tree, shards: int, axis: int = 1) -> Tree:
    """Reorder tokens so that shard i holds the tokens i, i + shards, i + 2 · shards, ...

    All shards of a causal sequence have nearly the same amount of work. As each of them spans the
    whole sequence, fewer blocks of scores are empty than in the order of `zigzag`.

    Args:
      tree: A pytree of arrays and `Coords`. `Coords` are reordered along their token axis.
      shards: Number of shards.
      axis: The token axis of the arrays.

    Returns:
      The pytree with its tokens reordered. `unstriped` is the inverse.

    Raises:
      ValueError: If the number of shards does not divide the number of tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn.coords import striped
      >>> striped(jnp.arange(8), 2, axis=0)
      Array([0, 2, 4, 6, 1, 3, 5, 7], dtype=int32)

    References:
      Brandon, Nrusimha, Qian, Ankner, Jin, Song, Ragan-Kelley, "Striped Attention: Faster Ring
      Attention for Causal Transformers", 2023, arXiv:2311.09431, section 3.
    """
    return _reorder(tree, axis, striped_order("striped", shards))


def unstriped(tree: Tree, shards: int, axis: int = 1) -> Tree:
    """The inverse of `striped`.

    Args:
      tree: See `striped`.
      shards: See `striped`.
      axis: See `striped`.

    Returns:
      The pytree with its tokens in the order of the sequence.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax_attn.coords import striped, unstriped
      >>> unstriped(striped(jnp.arange(8), 2, axis=0), 2, axis=0)
      Array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
    """
    return _reorder(tree, axis, inverse(striped_order("unstriped", shards)))


def _reorder(tree: Tree, axis: int, order: Callable[[int], np.ndarray]) -> Tree:
    def reorder(x: Any) -> Any:
        if isinstance(x, Coords):
            return x[order(len(x))]
        return jnp.take(x, order(x.shape[axis]), axis=axis)

    return jax.tree.map(reorder, tree, is_leaf=lambda x: isinstance(x, Coords))


def _take(values: Any, index: Index, axis: int) -> Any:
    if isinstance(index, slice):
        return values[..., index] if axis == -1 else values[..., index, :]
    return jnp.take(values, index, axis=axis)


def clamp_positions(values: Any) -> Any:
    """Clamp integers to ±(2³⁰ − 1) in int32, so that no difference wraps; keep other dtypes.

    The positions that masks and score modifiers read are clamped in this way.
    """
    if not jnp.issubdtype(values.dtype, jnp.integer):
        return values
    if jnp.iinfo(values.dtype).bits < 32:
        return values.astype(jnp.int32)
    return jax.lax.clamp(np.int32(-FARTHEST), jnp.asarray(saturate(values)), np.int32(FARTHEST))


FARTHEST = 2**30 - 1


def to_record(coords: Coords, side: str, batch_ndim: int, head_ids: Any = None) -> Record:
    """The record of coordinates that masks and score modifiers are called with.

    Args:
      coords: Coordinates of T tokens.
      side: `"query"` or `"key"`.
      batch_ndim: Number of batch axes of attention, to which all fields are expanded.
      head_ids: Global head ids of the queries `[N]`.

    Returns:
      A record with fields `[*B | 1, N | 1, T, 1]` for queries, `[*B | 1, N | 1, 1, T]` for keys.
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
                f"the {side} coordinates must have at most {batch_ndim} batch axes, as attention "
                f"has, got {len(batch)}, {list(batch)}."
            )
        ones = (1,) * (batch_ndim - len(batch))
        heads, length = array.shape[-2:]
        return array.reshape(*ones, *batch, heads, *(length if n == -1 else 1 for n in token_axes))

    fields = {name: expand(values) for name, values in coords.fields().items()}
    fields["positions"] = clamp_positions(fields["positions"])
    if head_ids is not None:
        fields["head_ids"] = head_ids.reshape((1,) * batch_ndim + (-1, 1, 1))
    return Record(side, fields)
