"""How large the blocks of the blockwise implementation are.

Measured on CPUs by `examples/benchmarks/attention.py`: tiles of 512 × 1024 scores keep the dot
products busy and stay in the cache; where a mask hides most of the scores, 256 rows waste fewer.
"""

import functools
import math

import jax

from flax_attn.attention._problem import Problem, is_aligned
from flax_attn.attention._schedule import Blocks
from flax_attn.coords import Coords
from flax_attn.masks import Causal, Full, Mask, make_plan

USUAL, IF_SHORT, IF_SPARSE = Blocks(512, 512, 2), Blocks(512, 512, 1), Blocks(256, 256, 4)
SHORT = 1024  # keys
ELSEWHERE = Blocks(128, 128, 4)  # not on a CPU: a tile holds all batch elements and heads
SPARSE = 0.4  # a mask that leaves less than this share of the blocks


def choose_blocks(problem: Problem, platform: str | None) -> Blocks:
    """Sizes of blocks for a problem on a platform."""
    length_q, length_k, num_heads, num_kv_heads = problem.sizes
    if platform != "cpu":
        wanted = ELSEWHERE
    elif length_k <= SHORT:
        wanted = IF_SHORT
    else:
        wanted = IF_SPARSE if problem.sparse else USUAL
    if problem.plan_block is not None:
        query, key = (
            min(size, length)
            for size, length in zip(problem.plan_block, (length_q, length_k), strict=True)
        )
    else:
        query = even(length_q, max(wanted.query * num_kv_heads // num_heads, 64))
        key = even(length_k, wanted.key)
    count = math.ceil(length_k / key)
    return Blocks(query, key, min(wanted.width, 2 ** (count.bit_length() - 1)))


def even(length: int, size: int) -> int:
    """The size of as many equal blocks as `size` would need, a multiple of 16 where possible."""
    if length <= size:
        return length
    count = math.ceil(length / size)
    return math.ceil(length / count / 16) * 16


def is_sparse(mask: Mask, lengths: tuple[int, int], located: bool) -> bool:
    """Whether a mask probably hides most of the scores.

    It is asked where that can be known, without coordinates and with known numbers. Otherwise it is
    guessed: whoever gives coordinates has packed sequences. It decides nothing but speed.
    """
    if isinstance(mask, Full | Causal) or min(lengths) <= 2 * USUAL.query:
        return False
    leaves = jax.tree.leaves(mask, is_leaf=is_aligned)
    if located or not all(isinstance(leaf, bool | int | float) for leaf in leaves):
        return True
    return _density(jax.tree.structure(mask), tuple(leaves), lengths) < SPARSE


@functools.lru_cache(maxsize=256)
def _density(
    tree: jax.tree_util.PyTreeDef, leaves: tuple[int, ...], lengths: tuple[int, int]
) -> float:
    with jax.ensure_compile_time_eval():
        query, key = (Coords.arange(length) for length in lengths)
        return make_plan(jax.tree.unflatten(tree, leaves), query, key, block=USUAL[:2]).density
