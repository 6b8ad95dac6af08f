"""Numbers per head in masks and score modifiers must be as many as there are heads."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from flax_attn.masks import Mask
from flax_attn.scores import ScoreMod


def check_numbers_of_heads(function: str, part: Any, num_heads: int) -> None:
    """Raise if a part has numbers for more or fewer heads than there are.

    It is asked where heads are counted from 0, as no `head_ids` are given.

    Args:
      function: The public function, for the message.
      part: A mask or a score modifier; anything else has none.
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
