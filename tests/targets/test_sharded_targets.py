"""Sharded attention compiles for slices of TPUs: what chips send, what they store, what overlaps.

Needs `libtpu`. `-m targets` runs what compiles in seconds, `-m targets_full` hundreds of chips.
"""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sharding_collectives import collectives
from sharding_costs import STRATEGIES, Attention, all_reduce, cache_memory, memory
from sharding_programs import OPTIONS, compile_attention, compile_decoding, memory_of, mesh_of

from flax_attn import Coords, linen, masks, sharded
from tests.compiled import every_collective, temporaries
from tests.targets.topologies import topology

small, full = pytest.mark.targets, pytest.mark.targets_full

BLOCK = 4096  # tokens of a chip
SCORES = 8 * BLOCK**2  # of a block of queries and a block of keys, in all heads
MILLION = 2**20
PERMUTE = "collective-permute"
V5E_MEMORY = 16e9


def chips_of(shape: str):
    return topology("tpu", shape).devices


@functools.cache
def compiled(shape: str, strategy: str, call: Attention):
    """The program of packed causal attention, and its collectives."""
    program = compile_attention(mesh_of(chips_of(shape), strategy, call), strategy, call)
    return program, collectives(program.as_text())


def assert_bytes_are_those_of_the_formula(found, strategy: str, call: Attention, chips: int):
    expected = sum(transfer.size for transfer in STRATEGIES[strategy](call, chips))
    assert sum(x.sent for x in found) == pytest.approx(expected, rel=0.01)


def assert_overlapped(found):
    """What is sent in each step is on its way while a block is computed."""
    assert [x for x in found if x.times > 1 and not x.is_overlapped] == []


def largest_array(program) -> int:
    """Number of elements of the largest array of one device."""
    sides = re.findall(r"\w+\[([\d,]+)\]", program.as_text())
    return max(math.prod(map(int, numbers.split(","))) for numbers in sides)


FORWARD = [
    pytest.param("v5e:16x16", marks=small),
    pytest.param("v5p:8x8x8", marks=full),
    pytest.param("v6e:16x16", marks=full),
    pytest.param("tpu7x:4x4x4", marks=full),
]
GRADIENT = [
    pytest.param("v5e:4x4", marks=small),
    pytest.param("tpu7x:2x2x1", marks=small),  # two devices on each chip
    pytest.param("v5e:16x16", marks=full),
    pytest.param("v5p:8x8x8", marks=full),
    pytest.param("v6e:16x16", marks=full),
    pytest.param("tpu7x:4x4x4", marks=full),
]


@pytest.mark.parametrize("shape", FORWARD)
def test_a_ring_permutes_each_moving_array_once_per_step(shape):
    """Keys, values, positions and documents, while the block before them is computed."""
    chips = len(chips_of(shape))
    call = Attention(chips * BLOCK, backward=False)
    program, found = compiled(shape, "ring", call)
    assert [(x.kind, x.times) for x in found] == [(PERMUTE, chips - 1)] * 4
    assert_overlapped(found)
    assert_bytes_are_those_of_the_formula(found, "ring", call, chips)
    assert largest_array(program) < SCORES / 4


@pytest.mark.parametrize("shape", GRADIENT)
def test_the_gradient_of_a_ring_goes_round_with_the_keys(shape):
    """Four permutes forward; six backward, and for two gradients the last block and the way home.

    Only the way home has nothing to overlap with.
    """
    chips = len(chips_of(shape))
    call = Attention(chips * BLOCK)
    program, found = compiled(shape, "ring", call)
    assert {x.kind for x in found} == {PERMUTE}
    assert sorted(x.times for x in found) == [1] * 4 + [chips - 1] * 10
    assert_overlapped(found)
    assert_bytes_are_those_of_the_formula(found, "ring", call, chips)
    assert largest_array(program) < SCORES / 4


@full
def test_in_the_order_of_their_ids_chips_compute_nothing_while_they_send():
    """Why `ring_mesh` orders them: some neighbours of this ring are far apart."""
    chips = np.array(chips_of("v5e:16x16")).reshape(1, -1)
    mesh = Mesh(chips, ("data", "seq"), axis_types=(AxisType.Auto,) * 2)
    call = Attention(MILLION, backward=False)
    found = collectives(compile_attention(mesh, "ring", call).as_text())
    assert [x.is_overlapped for x in found] == [False] * 4


@full
def test_without_an_option_v5p_sends_the_keys_after_each_block():
    """Why `OPTIONS` turns on features of the scheduler. It is libtpu 0.0.52 that needs it."""
    mesh, call = sharded.ring_mesh(chips_of("v5p:2x2x1")), Attention(4 * BLOCK, backward=False)
    options = {key: value for key, value in OPTIONS.items() if "scheduler" not in key}
    found = collectives(compile_attention(mesh, "ring", call, options).as_text())
    assert [x.is_overlapped for x in found] == [False] * 4


@small
def test_a_ring_compiles_for_eight_gpus():
    mesh = sharded.ring_mesh(topology("cuda").devices)
    tokens = NamedSharding(mesh, P(None, "seq"))
    x = jax.ShapeDtypeStruct((1, 8 * BLOCK, 8, 128), jnp.bfloat16, sharding=tokens)

    def gradient(q, k, v):
        attend = functools.partial(sharded.attention, mesh, sharded.Ring("seq"), is_causal=True)
        return jax.vjp(attend, q, k, v)[1](q)

    program = jax.jit(gradient).lower(x, x, x).compile()
    assert {kind for kind, _ in every_collective(program)} == {PERMUTE}
    assert temporaries(program) < 4 * SCORES / 2


STRATEGIES_OF_SLICES = [
    pytest.param("all-gather", "v5e:2x4", 8, marks=small),
    pytest.param("ulysses", "v5e:2x4", 8, marks=small),
    pytest.param("heads", "v5e:2x4", 8, marks=full),
    pytest.param("ulysses x ring", "v5e:4x4", 4, marks=full),
    pytest.param("ulysses x ring", "v5e:16x16", 8, marks=full),
]


@pytest.mark.parametrize(("strategy", "shape", "key_heads"), STRATEGIES_OF_SLICES)
def test_other_strategies_send_what_the_formula_says(strategy, shape, key_heads):
    chips = len(chips_of(shape))
    call = Attention(chips * BLOCK, key_heads=key_heads)
    _, found = compiled(shape, strategy, call)
    assert_bytes_are_those_of_the_formula(found, strategy, call, chips)
    kinds = {
        # XLA makes an all-reduce of the reduce-scatter, as the kernel's heads come before tokens.
        "all-gather": {"all-gather", "all-reduce"},
        "ulysses": {"all-to-all", "all-gather"},
        "ulysses x ring": {"all-to-all", "all-gather", PERMUTE},
        "heads": set(),
    }
    assert {x.kind for x in found} == kinds[strategy]


@small
def test_decoding_merges_what_256_chips_find_by_two_small_all_reduces():
    """One query of 8 heads of 128 sends 8 KiB, and nothing grows with the cache but the cache."""
    call = Attention(MILLION)
    mesh = sharded.ring_mesh(chips_of("v5e:16x16"))
    program = compile_decoding(mesh, call)
    found = collectives(program.as_text())
    assert [(x.kind, x.times) for x in found] == [("all-reduce", 1)] * 2
    assert sum(x.sent for x in found) == pytest.approx(all_reduce(call, 256)[0].size, rel=0.01)
    assert memory_of(program) == pytest.approx(cache_memory(call, 256), rel=0.01)


@full
@pytest.mark.parametrize(
    "shapes", [("v5e:2x2", "v5e:4x4", "v5e:16x16"), ("v5p:2x2x1", "v5p:8x8x8")]
)
def test_the_memory_of_a_ring_does_not_grow_with_the_chips(shapes):
    """Temporaries, forward and backward, from 4 to 512 chips of one kind.

    Kinds differ: v5p takes 1.5 times as much as v5e.
    """
    used = [
        temporaries(compiled(shape, "ring", Attention(len(chips_of(shape)) * BLOCK))[0])
        for shape in shapes
    ]
    assert max(used) <= 1.05 * min(used)


@full
def test_64_million_tokens_fit_on_256_chips_of_16_gigabytes():
    """Eight heads of 128 in bfloat16, forward and backward."""
    call = Attention(64 * MILLION)
    program, found = compiled("v5e:16x16", "ring", call)
    assert memory_of(program) < V5E_MEMORY
    assert memory_of(program) == pytest.approx(memory("ring", call, 256), rel=0.1)
    assert_bytes_are_those_of_the_formula(found, "ring", call, 256)


def normalized(x):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


class Layer(nn.Module):
    """One layer of a transformer of width 1024."""

    placement: sharded.Ring

    @nn.compact
    def __call__(self, x, documents):
        coords = Coords.from_segments(documents)
        attention = linen.MultiHeadAttention(
            num_heads=8,
            use_bias=False,
            dtype=x.dtype,
            param_dtype=x.dtype,
            mask=masks.Causal() & masks.SameSegment(),
            placement=self.placement,
        )
        y = normalized(x)
        x = x + attention(y, query_coords=coords, key_coords=coords)
        dense = functools.partial(nn.Dense, use_bias=False, dtype=x.dtype, param_dtype=x.dtype)
        y = normalized(x)
        return x + dense(x.shape[-1])(nn.gelu(dense(4 * x.shape[-1])(y)))


@full
def test_a_layer_of_a_transformer_takes_8_million_tokens_on_256_chips_of_16_gigabytes():
    """Under `jit`, XLA sums the gradients of the parameters, which are small, over the chips."""
    mesh = sharded.ring_mesh(chips_of("v5e:16x16"))
    layer = Layer(sharded.Ring("seq").on(mesh, batch="data"))

    def struct(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    x = struct((1, 8 * MILLION, 1024), jnp.bfloat16, "data", "seq")
    documents = struct(x.shape[:2], jnp.int32, "data", "seq")
    short = [jax.ShapeDtypeStruct((1, 256, *y.shape[2:]), y.dtype) for y in (x, documents)]
    parameters = jax.eval_shape(layer.init, jax.random.key(0), *short)
    parameters = jax.tree.map(lambda p: struct(p.shape, p.dtype), parameters)

    def gradients(parameters, x, documents, cotangent):
        y, pull_back = jax.vjp(lambda p, x: layer.apply(p, x, documents), parameters, x)
        return y, pull_back(cotangent)

    program = jax.jit(gradients).lower(parameters, x, documents, x).compile(OPTIONS)
    assert memory_of(program) < V5E_MEMORY
    found = collectives(program.as_text())
    assert {x.kind for x in found} <= {PERMUTE, "all-reduce", "reduce-scatter", "all-gather"}
    steps = [x for x in found if x.kind == PERMUTE and x.times == 255]
    assert len(steps) == 10
    assert_overlapped(steps)
    weights = 12 * 1024**2 * 2  # bytes
    assert sum(x.size for x in found if x.kind != PERMUTE) <= 2 * weights
