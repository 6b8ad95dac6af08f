"""Checks of the arrays within masks and score modifiers: numbers per head, and aligned axes."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn._checks import broadcasts_to, expand_rank
from flax_attn.coords import Aligned
from flax_attn.masks import Mask
from flax_attn.scores import ScoreMod


def check_numbers_of_heads(function: str, part: Any, num_heads: int) -> None:
    """Raise if a part has numbers for more or fewer heads than there are.

    Called only without `head_ids`: heads are then numbered from 0.

    Args:
      function: The public function, for the message.
      part: A mask or score modifier. Other objects pass.
      num_heads: N.
    """
    for name, axis, count in _numbers_of_heads(part):
        if count != num_heads:
            owner, field = name.split(": ")
            table = "[N]" if axis == 0 else "[..., N]"
            fix = f"ALiBi.for_heads({num_heads})" if owner == "ALiBi" else f"{num_heads} numbers"
            raise ValueError(
                f"{function}: {field} of {owner} must be {table} for N = {num_heads} query heads, "
                f"got {count}. Give {fix}; or head_ids, the numbers of these heads among all "
                f"{count}, where a device has a part of them."
            )


def _numbers_of_heads(part: Any) -> Iterator[tuple[str, int, int]]:
    """Name, axis and number of heads of every array of a part that has numbers per head."""
    if isinstance(part, dict):
        for value in part.values():
            yield from _numbers_of_heads(value)
        return
    if not isinstance(part, Mask | ScoreMod):
        return
    for name in part.per_head:
        shape = jnp.shape(getattr(part, name)) if getattr(part, name) is not None else ()
        if shape:
            yield f"{type(part).__name__}: {name}", len(shape) - 1, shape[-1]
    if dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            if not field.metadata.get("static"):
                yield from _numbers_of_heads(getattr(part, field.name))


def name_all_axes(function: str, part: Mask | ScoreMod, array: Aligned) -> tuple[str, jax.Array]:
    """Returns the axes and the array, with batch and head axes added.

    Every implementation then hands out parts of one rank.
    """
    axes, values = array.axes, jnp.asarray(array.values)
    rest = axes.removeprefix("b").removeprefix("n")
    if set(rest) & {"b", "n"} or len(set(rest)) < len(rest):
        raise ValueError(
            f"{function}: the axes {axes!r} of an array in {part!r} must be different letters, b "
            f"and n first: 'bn', 'bnt', 'bns', 'bnts'. Move the axes of the array."
        )
    if "n" not in axes:
        values = jnp.expand_dims(values, values.ndim - len(rest))
    return "bn" + rest, values


def check_sizes(
    function: str, part: Mask | ScoreMod, axes: str, array: jax.Array, shape: tuple[int, ...]
) -> None:
    """Raise unless an array with the axes `axes` broadcasts to scores of that shape."""
    *batch, num_heads, length_q, length_k = shape
    sizes = {"n": num_heads, "t": length_q, "s": length_k}
    own = zip(axes[1:], array.shape[len(batch) :], strict=True)
    wanted = (*batch, *(sizes.get(letter, size) for letter, size in own))
    if not broadcasts_to(array.shape, wanted):
        letters = ", ".join(["*B", *axes[1:].upper()])
        raise ValueError(
            f"{function}: the array with the axes {axes!r} in {part!r} must broadcast to "
            f"[{letters}] = {list(wanted)}, got {list(array.shape)}."
        )


def align(function: str, part: Any, shape: tuple[int, ...]) -> Any:
    """Expand the arrays of a mask or score modifier to all batch axes.

    Raises:
      ValueError: If one does not broadcast to `shape`, that of the scores.
    """
    batch_ndim = len(shape) - 3

    def expand(x: Any) -> Any:
        if not isinstance(x, Aligned):
            return x
        axes, array = name_all_axes(function, part, x)
        full = batch_ndim + len(axes) - 1
        if array.ndim > full:
            raise ValueError(
                f"{function}: an array of {type(part).__name__} has the shape {list(array.shape)}, "
                f"which has more than the {batch_ndim} batch axes of the query."
            )
        array = expand_rank(array, full)
        check_sizes(function, part, axes, array, shape)
        return Aligned(array, axes)

    return jax.tree.map(expand, part, is_leaf=lambda x: isinstance(x, Aligned))
