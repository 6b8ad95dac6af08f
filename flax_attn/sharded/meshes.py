"""Meshes whose rings run over neighbouring devices."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from flax_attn._checks import check_positive

Place = tuple[int, ...]


def ring_mesh(
    devices: Sequence[jax.Device] | np.ndarray | None = None,
    ring_size: int | None = None,
    *,
    axis_names: tuple[str, str] = ("data", "seq"),
    axis_types: tuple[AxisType, AxisType] = (AxisType.Auto, AxisType.Auto),
) -> Mesh:
    """A mesh `[rings, ring_size]` in which the neighbours of a ring are joined by a link.

    The chips of a TPU slice form a grid, and links join those that are next to each other. Each
    ring gets a box of the grid, and runs through it along a cycle that takes one link per step. So
    `ppermute` sends each block over one link, and XLA can send it while devices compute. Such a
    cycle exists if the box has an even number of devices and is not a line; where there is none,
    the ring is closed from the last device to the first, by a link only if the grid wraps around.
    A ring of several slices visits one slice after the other. The boxes follow each other in the
    same way, so that the mesh also serves a ring across groups of devices.

    Args:
      devices: The devices; by default all. Those without coordinates, such as CPUs and GPUs, are
        ordered by process and id.
      ring_size: Number of devices in a ring; by default all devices are one ring. It must divide
        the number of devices, and that of each slice if it is smaller.
      axis_names: Names of the axis over rings and of the axis along a ring.
      axis_types: Types of the two axes.

    Returns:
      The mesh. Sequences are split over its second axis, batches over its first.

    Raises:
      ValueError: If the sizes do not divide, or if the devices of a slice do not fill a box.

    Example:
      >>> from flax_attn.sharded import Ring, Ulysses, ring_mesh
      >>> dict(ring_mesh(ring_size=4).shape)  # of eight devices
      {'data': 2, 'seq': 4}
      >>> groups = ring_mesh(ring_size=4, axis_names=("far", "near"))
      >>> placement = Ulysses("near", inner=Ring("far")).on(groups)
    """
    devices = jax.devices() if devices is None else list(np.ravel(np.asarray(devices)))
    count = check_positive("ring_mesh", "the number of devices", len(devices))
    size = count if ring_size is None else check_positive("ring_mesh", "ring_size", ring_size)
    if count % size:
        raise ValueError(
            f"ring_mesh: ring_size must divide the number of devices, got {size} of {count}. Pass "
            f"fewer devices, or another size."
        )
    ordered = [device for piece in _slices(devices) for device in _in_rings(piece, size)]
    return Mesh(np.array(ordered).reshape(-1, size), axis_names, axis_types=axis_types)


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice, of which only those of one have links to each other."""
    slices = defaultdict(list)
    for device in sorted(devices, key=lambda device: (device.process_index, device.id)):
        slices[getattr(device, "slice_index", 0)].append(device)
    return [slices[index] for index in sorted(slices)]


def _in_rings(devices: list[Any], size: int) -> list[Any]:
    """The devices of one slice, ring after ring. A larger ring takes all of them."""
    if not all(hasattr(device, "coords") for device in devices):
        return devices
    size = min(size, len(devices))
    if len(devices) % size:
        raise ValueError(
            f"ring_mesh: ring_size must divide the number of devices of a slice, got {size} of "
            f"{len(devices)}. Choose a divisor, or at least the whole slice."
        )
    # A chip may have several devices, which are neighbours too.
    places = {(*device.coords, getattr(device, "core_on_chip", 0)): device for device in devices}
    corner = np.min(list(places), axis=0)
    grid = np.max(list(places), axis=0) - corner + 1
    if len(places) != len(devices) or math.prod(grid) != len(devices):
        raise ValueError(
            f"ring_mesh: the devices of a slice must fill a box, got {len(devices)} in a box "
            f"{grid.tolist()}. Take all devices of the slice, or make a jax.sharding.Mesh in "
            f"their order."
        )
    box = _box(tuple(grid.tolist()), size)
    boxes = _cycle(tuple(side // step for side, step in zip(grid.tolist(), box, strict=True)))
    steps = _cycle(box)
    corners = [corner + np.multiply(index, box) for index in boxes]
    return [places[tuple((corner + step).tolist())] for corner in corners for step in steps]


def _box(grid: Place, size: int) -> Place:
    """The sides of a box of `size` places that tiles the grid, with a cycle if there is one.

    As `size` divides the number of places, there is a box.
    """
    sides = ([i for i in range(1, side + 1) if side % i == 0] for side in grid)
    boxes = [box for box in itertools.product(*sides) if math.prod(box) == size]
    # Of those, the one that is most like a cube: its devices are near to each other.
    return min(boxes, key=lambda box: (not _has_cycle(box), sum(box), box))


def _has_cycle(box: Place) -> bool:
    size = math.prod(box)
    return size <= 2 or (size % 2 == 0 and max(box) < size)


def _cycle(box: Place) -> list[Place]:
    """The places of a box, each next to the one before it, and the last next to the first.

    With an even side of E places and a path of L places through the other sides, the places are a
    table [E, L]. The cycle goes down its rows from place 1 on, to and fro, and back along place 0.
    If there is no cycle, this is a path to and fro through the box.
    """
    if not _has_cycle(box):
        return _path(box)
    axis = next((axis for axis, side in enumerate(box) if side % 2 == 0), 0)
    path = _path(box[:axis] + box[axis + 1 :])
    rows = [path[1:] if row % 2 == 0 else path[:0:-1] for row in range(box[axis])]
    table = [(row, place) for row, places in enumerate(rows) for place in places]
    table = [(0, path[0]), *table, *((row, path[0]) for row in reversed(range(1, box[axis])))]
    return [(*place[:axis], row, *place[axis:]) for row, place in table]


def _path(box: Place) -> list[Place]:
    """The places of a box, each next to the one before it."""
    path: list[Place] = [()]
    for side in reversed(box):
        path = [(i, *rest) for i in range(side) for rest in (path if i % 2 == 0 else path[::-1])]
    return path
