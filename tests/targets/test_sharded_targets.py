"""Sharded attention compiles for whole slices of TPUs: what is sent, what is stored, what overlaps.

Needs `libtpu`. The slices of hundreds of chips are in the long run (`targets_full`), except one.
"""

import functools
import math
import re

import pytest
from sharding_collectives import collectives
from sharding_costs import STRATEGIES, Attention
from sharding_programs import compile_attention

from tests.targets.topologies import topology

pytestmark = pytest.mark.targets
full = pytest.mark.targets_full

BLOCK = 4096  # tokens of a chip
MILLION = 2**20


@functools.cache
def program(shape: str, strategy: str, tokens: int, backward: bool, key_heads: int = 8):
    call = Attention(tokens, key_heads=key_heads, backward=backward)
    compiled = compile_attention(topology("tpu", shape).devices, strategy, call)
    return compiled, collectives(compiled.as_text())


def largest_array(compiled) -> int:
    """Number of elements of the largest array of a program, on one device."""
    sides = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
    return max(math.prod(map(int, x.split(","))) for x in sides)


RINGS = [
    ("v5e:4x4", 16),
    pytest.param("v5e:16x16", 256, marks=full),
    pytest.param("v5p:8x8x8", 512, marks=full),
    pytest.param("v6e:16x16", 256, marks=full),
    pytest.param("tpu7x:4x4x4", 128, marks=full),
]


@pytest.mark.parametrize(("shape", "chips"), [*RINGS, ("tpu7x:2x2x1", 8)])
def test_the_gradient_of_a_ring_sends_each_block_round_once(shape, chips):
    compiled, found = program(shape, "ring", chips * BLOCK, True)
    assert {x.kind for x in found} == {"collective-permute"}
    assert len(found) == 14
    call = Attention(chips * BLOCK)
    (transfer,) = STRATEGIES["ring"](call, chips)
    assert sum(x.sent for x in found) == pytest.approx(transfer.size, rel=0.01)
    assert largest_array(compiled) < BLOCK**2
    assert all(x.is_overlapped for x in found if x.times > 1)
