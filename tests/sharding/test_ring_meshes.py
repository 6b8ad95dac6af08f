"""Meshes of rings: neighbours in a ring are neighbours in the torus."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from flax_attn.sharded import ring_mesh


@dataclasses.dataclass(frozen=True)
class Chip:
    """What `ring_mesh` reads of a TPU device."""

    coords: tuple[int, ...]
    core_on_chip: int = 0
    slice_index: int = 0
    process_index: int = 0
    id: int = 0


@pytest.fixture
def order(monkeypatch):
    """The devices of a mesh, which JAX makes of its own devices only."""
    monkeypatch.setattr("flax_attn.sharded.meshes.Mesh", lambda devices, *a, **k: devices)
    return ring_mesh


def chips(*sides, cores=1, slices=1):
    """The devices of slices, in an order that has nothing to do with the torus."""
    places = itertools.product(*map(range, sides), range(cores), range(slices))
    found = [
        Chip((*place, 0, 0)[:3] if len(place) < 3 else tuple(place), core, part, i % 7, i)
        for i, (*place, core, part) in enumerate(places)
    ]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def distance(a, b):
    """Number of links between two devices; no link wraps around."""
    apart = np.abs(np.subtract((*a.coords, a.core_on_chip), (*b.coords, b.core_on_chip)))
    return math.inf if a.slice_index != b.slice_index else apart.sum()


def longest_hop(ring):
    return max(distance(a, b) for a, b in zip(ring, np.roll(ring, -1), strict=True))


SLICES = {
    "v5e 16x16": chips(16, 16),
    "v5e 4x4": chips(4, 4),
    "v5e 2x4": chips(2, 4),
    "v5p 8x8x8": chips(8, 8, 8),
    "v5p 4x4x8": chips(4, 4, 8),
    "7x 2x2x1": chips(2, 2, 1, cores=2),
    "7x 4x4x4": chips(4, 4, 4, cores=2),
    "two odd sides": chips(3, 5, 2),
}


@pytest.mark.parametrize("name", SLICES)
def test_a_ring_of_a_slice_takes_one_link_per_step(order, name):
    """Also in boxes of the slice, of each power of two."""
    devices = SLICES[name]
    sizes = [2**i for i in range(1, 9) if len(devices) % 2**i == 0]
    for size in (len(devices), *sizes):
        mesh = order(devices, size)
        assert mesh.shape == (len(devices) // size, size)
        assert set(mesh.flat) == set(devices)
        assert [longest_hop(ring) for ring in mesh] == [1] * len(mesh)


def test_by_default_all_devices_are_one_ring(order):
    assert order(SLICES["v5e 4x4"]).shape == (1, 16)


def test_the_part_of_a_slice_that_is_a_box_has_rings(order):
    devices = [d for d in SLICES["v5e 4x4"] if d.coords[0] >= 2 and d.coords[1] >= 1]
    (ring,) = order(devices)
    assert len(ring) == 6
    assert longest_hop(ring) == 1


def test_rings_follow_each_other_from_box_to_box(order):
    """So that a ring across the boxes, over the first axis, is short too."""
    mesh = order(SLICES["v5e 16x16"], 8)  # boxes of 2 by 4
    assert {longest_hop(ring) for ring in mesh.T} == {4}


@pytest.mark.parametrize(("sides", "hops"), [((7,), 6), ((3, 3), 4), ((1,), 0)])
def test_without_a_cycle_only_the_last_hop_is_long(order, sides, hops):
    (ring,) = order(chips(*sides))
    steps = [distance(a, b) for a, b in zip(ring, np.roll(ring, -1), strict=True)]
    assert steps == [1] * (len(ring) - 1) + [hops]


def test_rings_stay_in_a_slice_if_they_fit_into_it(order):
    devices = chips(4, 4, slices=2)
    assert all(longest_hop(ring) == 1 for ring in order(devices, 16))
    (ring,) = order(devices, 32)
    between = [a.slice_index != b.slice_index for a, b in itertools.pairwise(ring)]
    assert sum(between) == 1


def test_other_devices_are_ordered_by_process_and_id():
    devices = jax.devices()
    mesh = ring_mesh(devices[::-1], 4)
    assert mesh.devices.tolist() == [devices[:4], devices[4:]]
    assert mesh.axis_names == ("data", "seq")
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    named = ring_mesh(
        np.array(devices).reshape(2, 4),
        axis_names=("batch", "ring"),
        axis_types=(AxisType.Explicit, AxisType.Auto),
    )
    assert dict(named.shape) == {"batch": 1, "ring": 8}
    assert named.axis_types == (AxisType.Explicit, AxisType.Auto)


@pytest.mark.parametrize(
    ("devices", "size", "message"),
    [
        (chips(2, 4), 3, "ring_size must divide the number of devices, got 3 of 8"),
        (chips(2, 4), 0, "ring_size must be at least 1, got 0"),
        ([], None, "the number of devices must be at least 1, got 0"),
        (chips(2, 4)[1:], None, r"must fill a box, got 7 in a box \[2, 4, 1, 1\]"),
        (chips(2, 4) * 2, None, "must fill a box, got 16"),
        (chips(2, 4, slices=3), 6, "must divide the number of devices of a slice, got 6 of 8"),
    ],
)
def test_what_it_refuses(devices, size, message):
    with pytest.raises(ValueError, match=f"ring_mesh: .*{message}"):
        ring_mesh(devices, size)
