"""How large the tiles of the blockwise implementation are.

Measured on CPUs by `examples/benchmarks/attention.py`. XLA gives a dot product to several cores
only from about 512 × 512 on, and a fused softmax only with several heads: so tiles are large, or
hold several heads. Where a mask hides much, small blocks waste less.
"""

import math
from typing import NamedTuple

from flax_attn.attention._core.problem import Problem


class TileSizes(NamedTuple):
    """How large tiles are.

    Attributes:
      query: Queries in a block.
      key: Keys in a block.
      width: W, how many key blocks a tile may have, a power of two.
      heads: Key heads in a tile, where heads are taken one after the other.
    """

    query: int
    key: int
    width: int
    heads: int = 1

    @property
    def shapes(self) -> tuple[tuple[int, bool], ...]:
        """How many key blocks each shape of tile has, and whether it needs the mask."""
        powers = [2**i for i in range(self.width.bit_length())]
        return ((self.width, False), *((power, True) for power in reversed(powers)))


USUAL = TileSizes(512, 512, 2)
IF_SHORT = TileSizes(512, 512, 1)
IF_SHORTER = TileSizes(128, 128, 2, heads=8)
IF_SPARSE = TileSizes(256, 256, 2)
ALL_HEADS = TileSizes(128, 128, 4)  # a tile holds all batch elements and heads
SHORT, SHORTER = 1024, 512  # numbers of keys; SHORTER applies only where keys may be hidden
ROWS = 512  # of query heads that share a key head, together
# Largest number of scores in a tile of several heads. It is halved for short sequences, to save
# memory, and not used for gradients, where more heads save little time.
SCORES = 2**20


def choose_sizes(
    problem: Problem,
    *,
    sequential: bool,
    gradients: bool = False,
    block_query: int | None = None,
    block_key: int | None = None,
    blocks_per_tile: int | None = None,
    heads_per_tile: int | None = None,
) -> TileSizes:
    """The sizes of tiles for a problem.

    Args:
      problem: The problem.
      sequential: Whether batch elements and key heads are taken one after the other.
      gradients: Whether gradients are computed.
      block_query: Queries in a block, as the user wants it; None chooses.
      block_key: Keys in a block, as the user wants it; None chooses.
      blocks_per_tile: W, as the user wants it; None chooses.
      heads_per_tile: Key heads in a tile at most, as the user wants it; None chooses.
    """
    length_q, length_k, num_heads, num_kv_heads = problem.sizes
    if not sequential:
        wanted = ALL_HEADS
    elif length_k <= SHORTER and problem.may_hide and num_kv_heads >= IF_SHORTER.heads // 2:
        wanted = IF_SHORTER
    elif length_k <= SHORT:
        wanted = IF_SHORT
    else:
        wanted = IF_SPARSE if problem.sparse else USUAL
    groups = num_heads // num_kv_heads
    query = _equal_blocks(length_q, min(wanted.query, max(ROWS // groups, 64)))
    key = _equal_blocks(length_k, wanted.key)
    if problem.plan is not None:
        block_query, block_key = problem.plan.block
    query = query if block_query is None else min(block_query, length_q)
    key = key if block_key is None else min(block_key, length_k)
    rows = query * groups
    most = wanted.width if blocks_per_tile is None else blocks_per_tile
    width = min(most, 2 ** (math.ceil(length_k / key).bit_length() - 1))
    scores = SCORES if length_k > SHORT else SCORES // 2
    heads = wanted.heads if gradients else max(scores // (rows * key * width), wanted.heads)
    heads = heads if heads_per_tile is None else heads_per_tile
    return TileSizes(query, key, width, _divisor(num_kv_heads, heads))


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is at most `limit`."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)


def _equal_blocks(length: int, size: int) -> int:
    """Split a length into ceil(length / size) equal blocks, rounded up to a multiple of 16."""
    if length <= size:
        return length
    count = math.ceil(length / size)
    return math.ceil(length / count / 16) * 16
