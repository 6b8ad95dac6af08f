"""Which blocks of keys a device needs, where the mask and the coordinates are known."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from flax_attn._checks import check_at_least
from flax_attn._jax import outside_of_traces
from flax_attn._record import MissingFieldError
from flax_attn.coords import Aligned, Coords
from flax_attn.masks import Mask, make_plan
from flax_attn.masks.plan import EMPTY


def needed_shifts(
    mask: Mask,
    query_coords: Coords,
    key_coords: Coords | None = None,
    *,
    shards: int,
    head_ids: Int[Array, "N"] | None = None,
) -> tuple[int, ...]:
    """The steps of a ring in which some device has something to do.

    Step j is needed if a query of some device i sees a key of device i − j.

    Args:
      mask: The mask.
      query_coords: Coordinates of all queries, known numbers.
      key_coords: Coordinates of all keys. Default: `query_coords`.
      shards: Number of devices in the ring. It divides the numbers of queries and of keys.
      head_ids: Global head ids `[N]`, for a mask that depends on the head.

    Returns:
      The steps, sorted, for `Ring(axis, shifts=...)`. Step 0 if no query sees any key.

    Raises:
      ValueError: If a number of tokens is not a multiple of `shards`, or the mask reads a field
        that is not in the coordinates.
      TypeError: If the mask or the coordinates are traced.

    Example:
      >>> from flax_attn import Coords, masks, sharded
      >>> sharded.needed_shifts(masks.Window(512, 0), Coords.arange(8192), shards=8)
      (0, 1)
      >>> sharded.needed_shifts(masks.Window(512, 512), Coords.arange(8192), shards=8)
      (0, 1, 7)
    """
    key_coords = query_coords if key_coords is None else key_coords
    shards = check_at_least("needed_shifts", "shards", shards, 1)
    lengths = len(query_coords), len(key_coords)
    if any(length % shards for length in lengths):
        raise ValueError(
            f"needed_shifts: the numbers of queries and keys must be multiples of shards = "
            f"{shards}, got {lengths[0]} and {lengths[1]}. Pad the sequence."
        )
    if not (is_known(mask) and is_known(query_coords) and is_known(key_coords)):
        raise TypeError(
            "needed_shifts: mask and coordinates must be known numbers, got traced arrays. Call it "
            "outside jit, or leave shifts out."
        )
    block = (lengths[0] // shards, lengths[1] // shards)
    with outside_of_traces():
        plan = make_plan(mask, query_coords, key_coords, block, head_ids=head_ids)
        kinds = np.asarray(plan.kinds)
    some = np.any(kinds != EMPTY, axis=tuple(range(kinds.ndim - 2)))
    queries, keys = np.nonzero(some)
    found = {int(shift) for shift in np.unique((queries - keys) % shards)}
    return tuple(sorted(found)) or (0,)


def is_known(tree: object) -> bool:
    """Whether no number of a pytree is traced."""
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def shifts_of_call(
    mask: Mask,
    coords: tuple[Coords | None, Coords | None],
    lengths: tuple[int, int],
    shards: int,
) -> tuple[int, ...] | None:
    """The steps that a call needs; None if it may need all of them.

    Args:
      mask: The mask of the problem.
      coords: What the user gave; None = positions 0, 1, ...
      lengths: T and S, multiples of `shards`.
      shards: Number of devices in the ring.
    """
    given = [
        _ends_of_shards(length, shards) if one is None else one
        for one, length in zip(coords, lengths, strict=True)
    ]
    is_aligned = [isinstance(x, Aligned) for x in _leaves(mask)]
    if any(is_aligned) or not (is_known(mask) and all(map(is_known, given))):
        return None
    if any(c is not None and len(c) != n for c, n in zip(coords, lengths, strict=True)):
        return None  # padded
    try:
        found = needed_shifts(mask, *given, shards=shards)
    except MissingFieldError:  # the mask depends on the head, or on a field that is not known here
        return None
    return None if len(found) == shards else found


def _leaves(mask: Mask) -> list[object]:
    return jax.tree.leaves(mask, is_leaf=lambda x: isinstance(x, Aligned))


def _ends_of_shards(length: int, shards: int) -> Coords:
    """The first and the last position of each shard, which bound all between them."""
    with outside_of_traces():
        first = np.arange(shards) * (length // shards)
        ends = np.stack([first, first + length // shards - 1], axis=1)
        return Coords(jnp.asarray(ends.reshape(-1), jnp.int32))
