"""The lists of blocks that a kernel visits, against the mask itself."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, masks
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._staged.blocks import (
    coarsened,
    kinds_of_blocks,
    share_of_kinds,
    visits,
)
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL
from tests.masks.test_catalogue import CATALOGUE, B, N, S, T, expected, random_coords


def problem_of(mask, query, key, **options):
    q, k = jnp.zeros((B, len(query), N, 2)), jnp.zeros((B, len(key), 1, 2))
    return normalize(
        "attention", q, k, k, None, mask, query_coords=query, key_coords=key, **options
    )


def blocks_of(seen, block):
    """Each block of pairs `[B, N, T, S]`, by its row and column."""
    for row in range(math.ceil(seen.shape[-2] / block[0])):
        for column in range(math.ceil(seen.shape[-1] / block[1])):
            rows, columns = (
                slice(i * size, (i + 1) * size)
                for i, size in zip((row, column), block, strict=True)
            )
            yield row, column, seen[..., rows, columns]


def visited(found, row, batch=0, head=0):
    """The columns that a row visits, and which of them need the mask."""
    blocks, counts = np.asarray(found.blocks), np.asarray(found.counts)
    at = (batch if len(blocks) > 1 else 0, head if blocks.shape[1] > 1 else 0, row)
    steps = blocks[at]
    count = counts[at]
    assert (steps[count:] == steps[max(count - 1, 0)]).all()  # nothing else is fetched
    return {int(step) // 2: bool(step % 2) for step in steps[:count]}


def assert_sound(kinds, seen, block):
    """What is visible is visited, and without its mask only where everything is visible."""
    turned = visits(jnp.swapaxes(kinds, -1, -2))
    found = visits(kinds)
    for b in range(B):
        for n in range(N):
            lists = [visited(found, row, b, n) for row in range(kinds.shape[-2])]
            columns = [visited(turned, column, b, n) for column in range(kinds.shape[-1])]
            for row, column, part in blocks_of(seen[b, n], block):
                assert lists[row].get(column) == columns[column].get(row)
                if part.any():
                    assert column in lists[row]
                if lists[row].get(column) is False:
                    assert part.all()
                    assert part.shape[-1] == block[1]  # no padding


@functools.partial(jax.jit, static_argnums=1)
def kinds_of(problem, block):
    return kinds_of_blocks(problem, block)


@pytest.mark.parametrize("block", [(4, 4), (3, 8), (16, 5)], ids=str)
@pytest.mark.parametrize("layout", ["self", "decode", "permuted"])
def test_every_visible_pair_is_in_a_block_that_is_visited(layout, block):
    query, key = random_coords(layout)
    valid = np.asarray(query.valid)[:, None, :, None] & np.asarray(key.valid)[:, None, None]
    for name, (mask, _) in CATALOGUE.items():
        kinds = kinds_of_blocks(problem_of(mask, query, key), block)
        assert kinds.shape[-2:] == (math.ceil(T / block[0]), math.ceil(S / block[1])), name
        assert_sound(kinds, expected(name, layout) & valid, block)


def test_a_causal_mask_leaves_half_of_the_blocks_and_the_diagonal_needs_it():
    coords = Coords.arange(32)
    kinds = kinds_of_blocks(problem_of(masks.Causal(), coords, coords), (8, 8))
    found = visits(kinds)
    for row in range(4):
        assert visited(found, row) == {column: column == row for column in range(row + 1)}
    assert share_of_kinds(kinds) == {"full": 6 / 16, "partial": 4 / 16, "empty": 6 / 16}


def test_without_a_mask_only_keys_that_are_not_there_need_one():
    q = jnp.zeros((B, T, N, 2))
    k = jnp.zeros((B, 13, N, 2))
    kinds = kinds_of_blocks(normalize("attention", q, k, k, None, None), (4, 4))
    assert kinds.shape == (1, 1, 2, 4)
    np.testing.assert_array_equal(kinds[0, 0], [[FULL, FULL, FULL, PARTIAL]] * 2)


@pytest.mark.parametrize("block", [(8, 8), (4, 16), (16, 4), (5, 7)], ids=str)
def test_a_plan_serves_other_block_sizes(block):
    """Larger blocks are made of those of the plan; for others the mask is asked again."""
    mask = masks.Causal() & masks.Chunked(12)
    query, key = Coords.arange(30, 10), Coords.arange(40)
    plan = masks.make_plan(mask, query, key, block=(4, 4))
    planned = kinds_of_blocks(problem_of(mask, query, key, plan=plan), block)
    alone = kinds_of_blocks(problem_of(mask, query, key), block)
    i, j = np.arange(30)[:, None] + 10, np.arange(40)
    seen = np.broadcast_to((j <= i) & (i // 12 == j // 12), (B, N, 30, 40))
    assert planned.shape == alone.shape
    assert_sound(planned, seen, block)
    assert (EMPTY == np.asarray(planned)).sum() >= (EMPTY == np.asarray(alone)).sum()


def test_visits_are_the_blocks_that_are_not_empty_in_order():
    rng = np.random.default_rng(0)
    for shape in [(1, 1, 1, 1), (2, 3, 4, 5), (1, 2, 6, 3), (2, 1, 3, 9)]:
        kinds = rng.integers(0, 3, shape).astype(np.int8)
        found = visits(jnp.asarray(kinds))
        assert found.blocks.dtype == found.counts.dtype == jnp.int32
        for b, n, row in np.ndindex(shape[:3]):
            expect = {
                c: bool(kinds[b, n, row, c] != FULL)
                for c in range(shape[3])
                if kinds[b, n, row, c] != EMPTY
            }
            got = visited(found, row, b, n)
            assert list(got.items()) == list(expect.items())


def test_a_larger_block_has_the_kind_of_all_its_parts_or_is_partial():
    rng = np.random.default_rng(1)
    for (nq, nk), (rows, columns) in [((4, 6), (2, 3)), ((5, 7), (2, 4)), ((3, 3), (1, 5))]:
        kinds = rng.choice([EMPTY, FULL, FULL, PARTIAL], (2, 1, nq, nk)).astype(np.int8)
        found = np.asarray(coarsened(jnp.asarray(kinds), rows, columns))
        assert found.shape == (2, 1, math.ceil(nq / rows), math.ceil(nk / columns))
        assert found.dtype == kinds.dtype
        for b in range(2):
            for row, column, part in blocks_of(kinds[b, 0], (rows, columns)):
                same = part.min() == part.max()
                assert found[b, 0, row, column] == (part.min() if same else PARTIAL)
