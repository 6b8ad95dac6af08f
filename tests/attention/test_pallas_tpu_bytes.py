"""The bytes that the TPU kernels move between device memory and vector memory.

They are counted by walking the grid of the real calls, with their blocks, index maps and lists of
visits, and compared with a formula, and with what XLA is told.
"""

import importlib
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, masks
from flax_attn.attention import PallasTPU
from flax_attn.attention._core.implementation import Target
from flax_attn.attention._core.normalize import normalize

B, T, N, K, D, DV, BLOCK = 2, 1024, 4, 2, 128, 256, 128
BLOCKS, G = T // BLOCK, N // K
SWEEP = importlib.import_module("flax_attn.attention.pallas_tpu.sweep")


def problem(case):
    q, k, v = (jnp.zeros((B, T, n, d), jnp.bfloat16) for n, d in ((N, D), (K, D), (K, DV)))
    # In blocks 6 + 6 + 10 of them less 2 on the diagonal, and 1 + 10 + 10 less 1.
    lengths = [[300, 300, 424], [1, 511, 512]]
    segment_ids = jnp.array([np.repeat(range(3), x) for x in lengths])
    coords = {name: Coords.from_segments(segment_ids) for name in ("query_coords", "key_coords")}
    options = {
        "full": {},
        "causal": {"is_causal": True},
        "packed": {"mask": masks.Causal() & masks.SameSegment(), **coords},
    }
    mask = options[case].pop("mask", None)
    return normalize("test", q, k, v, None, mask, **options[case])


@pytest.fixture
def calls(monkeypatch):
    """Calls of kernels: (grid spec, shapes of results, cost, operands)."""
    found = []

    def record(kernel, *, grid_spec, out_shape, cost_estimate, **options):
        del kernel, options

        def call(*operands):
            found.append((grid_spec, out_shape, cost_estimate, operands))
            return [jnp.zeros(x.shape, x.dtype) for x in out_shape]

        return call

    monkeypatch.setattr(SWEEP.pl, "pallas_call", record)
    return found


def places(spec, grid, blocks, counts):
    """The place of a block at each step of the grid."""
    return [
        tuple(int(x) for x in spec.index_map(*at, blocks, counts))
        for at in itertools.product(*map(range, grid))
    ]


def count_bytes(call):
    """Bytes that are loaded and stored."""
    grid_spec, out_shape, _, (blocks, counts, *operands) = call
    blocks, counts = np.asarray(blocks), np.asarray(counts)
    grid = (*grid_spec.grid[:4], int(counts.max()))
    total = 0
    specs = [*grid_spec.in_specs, *grid_spec.out_specs]
    for spec, x in zip(specs, [*operands, *out_shape], strict=True):
        found = places(spec, grid, blocks, counts)
        changes = 1 + sum(a != b for a, b in itertools.pairwise(found))
        total += changes * math.prod(n for n in spec.block_shape if n) * x.dtype.itemsize
    return total


def visits_and_loads(call):
    """Numbers of visits, and of those whose block of columns is another than the one before.

    A block of queries may begin with the block of keys at which the one before it ended. Blocks of
    keys do not, where several query heads share them.
    """
    grid_spec, _, _, (blocks, counts, *_) = call
    *_, rows, members, _ = grid_spec.grid
    counts = np.asarray(counts).reshape(-1, rows)
    blocks = np.asarray(blocks).reshape(*counts.shape, -1) // 2
    repeats = sum(
        lists[row + 1, 0] == lists[row, -1] for lists in blocks for row in range(rows - 1)
    )
    repeats = repeats if members == 1 else 0
    times = B * N // len(counts)  # for batch elements and heads that share their lists
    return counts.sum() * times, (counts.sum() - repeats) * times


def forward_bytes(loads):
    """Q once for each block of queries, K and V at each load; O and LSE."""
    rows = B * N * T
    return 2 * rows * D + loads * 2 * BLOCK * (D + DV) + rows * (2 * DV + 4)


def by_query_bytes(loads):
    """Q, dO, LSE and δ once for each block of queries, K and V at each load; dQ."""
    rows = B * N * T
    return rows * (2 * D + 2 * DV + 8) + loads * 2 * BLOCK * (D + DV) + 2 * rows * D


def by_key_bytes(loads):
    """K and V once for each block of keys, Q, dO, LSE and δ at each load; dK and dV."""
    rows = B * K * T
    return rows * 2 * (D + DV) + loads * BLOCK * (2 * (D + DV) + 8) + rows * 2 * (D + DV)


FORMULAS = {"forward": forward_bytes, "by query": by_query_bytes, "by key": by_key_bytes}


def call_of(kernel, case, calls):
    implementation = PallasTPU(block_query=BLOCK, block_key=BLOCK, interpret=True)
    target = Target("tpu")
    given = problem(case)
    output, lse = jnp.zeros((B, T, N, DV), jnp.bfloat16), jnp.zeros((B, T, N))
    if kernel == "forward":
        implementation.forward(given, target)
        return calls[0]
    implementation.transpose(given, target, (output, lse), (output, lse), (0, 1, 2))
    return calls[-2 if kernel == "by query" else -1]


@pytest.mark.parametrize("kernel", FORMULAS)
@pytest.mark.parametrize("case", ["full", "causal", "packed"])
def test_bytes_are_those_of_the_tiling(kernel, case, calls):
    """Operands over rows are loaded once for each block of rows, those over columns as visited.

    The masks read positions and segments too, as vectors of 4 bytes for each token: below 2 %.
    """
    call = call_of(kernel, case, calls)
    visits, loads = visits_and_loads(call)
    share = {"full": 1, "causal": 9 / 16, "packed": 20 / 64}[case]
    assert visits == share * B * N * BLOCKS**2
    np.testing.assert_allclose(count_bytes(call), FORMULAS[kernel](loads), rtol=0.02)
    # XLA is told as much, without the loads that are saved.
    np.testing.assert_allclose(call[2].bytes_accessed, FORMULAS[kernel](visits), rtol=0.02)


@pytest.mark.parametrize("case", ["full", "causal"])
@pytest.mark.parametrize(("kernel", "products"), [("forward", D + DV), ("by key", 2 * (D + DV))])
def test_operations_are_those_of_the_matrix_products(kernel, products, case, calls):
    _, _, cost, _ = call_of(kernel, case, calls)
    share = {"full": 1, "causal": 9 / 16}[case]
    assert cost.flops == 2 * B * N * T * T * products * share
    assert cost.transcendentals == B * N * T * T * share
