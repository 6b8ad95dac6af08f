"""How large the blocks of the blockwise implementation are.

Measured on CPUs by `examples/benchmarks/attention.py`. XLA gives a dot product to several cores
only from about 512 × 512 on, and a fused softmax only with several heads: so tiles are large, or
hold several heads. Where a mask hides much, small blocks waste less.
"""

import functools
import math

import jax

from flax_attn.attention._problem import Problem, is_aligned
from flax_attn.attention._schedule import Blocks
from flax_attn.coords import Coords
from flax_attn.masks import Causal, Full, Mask, make_plan

USUAL = Blocks(512, 512, 2)
IF_SHORT = Blocks(512, 512, 1)
IF_SHORTER = Blocks(128, 128, 2, heads=8)
IF_SPARSE = Blocks(256, 256, 2)
SHORT, SHORTER = 1024, 512  # keys; the second where a mask hides some of them
ELSEWHERE = Blocks(128, 128, 4)  # not on a CPU: a tile holds all batch elements and heads
SPARSE = 0.4  # a mask that leaves less than this share of the blocks
ROWS = 512  # of query heads that share a key head, together
# A tile may hold several heads up to so many scores; half as many for short sequences, where its
# memory shows. With gradients more heads take more memory than time.
SCORES = 2**20


def choose_blocks(problem: Problem, platform: str | None, gradients: bool = False) -> Blocks:
    """Sizes of blocks for a problem on a platform, to compute gradients or anything else."""
    length_q, length_k, num_heads, num_kv_heads = problem.sizes
    if platform != "cpu":
        wanted = ELSEWHERE
    elif length_k <= SHORTER and problem.hides and num_kv_heads >= IF_SHORTER.heads // 2:
        wanted = IF_SHORTER
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
        groups = num_heads // num_kv_heads
        query = even(length_q, min(wanted.query, max(ROWS // groups, 64)))
        key = even(length_k, wanted.key)
    rows = query * num_heads // num_kv_heads
    width = min(wanted.width, 2 ** (math.ceil(length_k / key).bit_length() - 1))
    scores = SCORES if length_k > SHORT else SCORES // 2
    heads = wanted.heads if gradients else max(scores // (rows * key * width), wanted.heads)
    return Blocks(query, key, width, _divisor(num_kv_heads, heads))


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is at most `limit`."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)


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
    if isinstance(mask, Full | Causal) or not all(isinstance(n, int) for n in lengths):
        return False
    if min(lengths) <= 2 * USUAL.query:
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
