"""What placements refuse, in words that say what to write instead."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import Coords, Dropout, dot_product_attention, make_plan, masks, sharded
from flax_attn.normalizers import Entmax, TopK
from flax_attn.sharded import AllGather, AllReduce, Heads, Ring, Ulysses

MESH = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "seq"), axis_types=(AxisType.Auto,) * 2)
QUERY, KEY = np.ones((2, 16, 4, 4), np.float32), np.ones((2, 16, 2, 4), np.float32)
TOKENS = P(None, "seq")


def explicit_batch():
    """Arrays whose batch is split by their type, and the mesh of that type."""
    kinds = (AxisType.Explicit,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "seq"), axis_types=kinds)
    split = NamedSharding(mesh, P("data"))
    return *(jax.device_put(x, split) for x in (QUERY, KEY, KEY)), mesh


def on_mesh(placement, query=QUERY, key=KEY, value=KEY, mesh=MESH, **options):
    return sharded.attention(mesh, placement, query, key, value, **options)


def within(placement, *specs, query=QUERY, key=KEY, value=KEY, check_vma=True, **options):
    """A call within `shard_map`, with the same specs for all unless three are given."""
    specs = specs or (TOKENS,)
    specs = specs * 3 if len(specs) == 1 else specs

    def part(query, key, value):
        return dot_product_attention(query, key, value, placement=placement, **options)

    run = jax.shard_map(part, mesh=MESH, in_specs=specs, out_specs=specs[0], check_vma=check_vma)
    return run(query, key, value)


def within_vmap():
    attend = functools.partial(dot_product_attention, placement=Ring("seq"))
    return jax.vmap(attend, axis_name="seq")(QUERY, KEY, KEY)


PLAN = functools.partial(make_plan, masks.Causal(), block=(4, 4))

MISTAKES = {
    "an axis that the mesh does not have": (
        lambda: on_mesh(Ring("sequence")),
        ValueError,
        "Ring('sequence').on: the mesh must have an axis 'sequence', got 'data' of 2, 'seq' of 4.",
    ),
    "an axis for tokens and batch": (
        lambda: on_mesh(Ring("seq"), batch="seq"),
        ValueError,
        "each mesh axis must be used once, got 'seq' 2 times. Split one thing by it",
    ),
    "an axis for tokens and heads": (
        lambda: on_mesh(Ring("seq"), heads="seq"),
        ValueError,
        "Heads: axis must be another than those of inner, got 'seq' twice.",
    ),
    "an axis in two rings": (
        lambda: Ring("far", inner=Ring("near", inner=Ring("far"))),
        ValueError,
        "Ring: axis must be another than those of inner, got 'far' twice.",
    ),
    "heads that cannot be split": (
        lambda: on_mesh(Heads("seq"), QUERY[:, :, :2]),
        ValueError,
        "the number of query heads N must be a multiple of the 4 devices that split heads, got 2.",
    ),
    "heads that Ulysses cannot split": (
        lambda: on_mesh(Ulysses("seq"), QUERY[:, :, :2], batch="data"),
        ValueError,
        "query heads N of Ulysses('seq') must be a multiple of its 4 devices, got 2. Use fewer",
    ),
    "an axis that nothing names": (
        lambda: on_mesh(Ulysses("seq")),
        ValueError,
        "the mesh axis 'data' must be named, as XLA would gather what is split over it. Write "
        "batch='data', heads='data', or batch=() if nothing is split over it.",
    ),
    "a batch that is split by an axis that nothing names": (
        lambda: on_mesh(Ring("seq"), *explicit_batch()),
        ValueError,
        "query must be split by the mesh axes of Ring('seq').on(Mesh(data=2, seq=4)), got",
    ),
    "a batch that cannot be split": (
        lambda: on_mesh(Ring("seq"), QUERY[:1], KEY[:1], KEY[:1], batch="data"),
        ValueError,
        "the first batch axis must be a multiple of the 2 devices of ('data',), got 1.",
    ),
    "Entmax in a ring": (
        lambda: on_mesh(Ring("seq"), normalizer=Entmax()),
        NotImplementedError,
        "Entmax cannot be merged from blocks of keys. Gather the keys: AllGather('seq').",
    ),
    "TopK in a ring within Ulysses": (
        lambda: on_mesh(Ulysses("data", inner=Ring("seq")), normalizer=TopK(3)),
        NotImplementedError,
        "TopK cannot be merged from blocks of keys. Gather the keys: AllGather('seq').",
    ),
    "TopK merged by all-reduce": (
        lambda: on_mesh(AllReduce("seq"), normalizer=TopK(3)),
        NotImplementedError,
        "TopK cannot be merged from parts of the keys.",
    ),
    "a plan": (
        lambda: on_mesh(Ring("seq"), mask=masks.Causal(), plan=PLAN(Coords.arange(16))),
        ValueError,
        "plan must be left out with the placement Ring('seq'), which finds the blocks",
    ),
    "a plan of all keys for a part of them": (
        lambda: on_mesh(AllReduce("seq"), mask=masks.Causal(), plan=PLAN(Coords.arange(16))),
        ValueError,
        "plan must be left out with the placement AllReduce('seq'), which finds the blocks",
    ),
    "a plan of other lengths": (
        lambda: on_mesh(Ring("seq"), mask=masks.Causal(), plan=PLAN(Coords.arange(4))),
        ValueError,
        "the plan was made for [T, S] = [4, 4], the attention has [16, 16].",
    ),
    "positions of other lengths": (
        lambda: on_mesh(Ring("seq"), QUERY[:, :8], mask=masks.Causal()),
        ValueError,
        "compares positions, but T = 8 queries and S = 16 keys have none. Give the positions",
    ),
    "positions of other lengths within shard_map": (
        lambda: within(Ring("seq"), query=QUERY[:, :8], mask=masks.Causal()),
        ValueError,
        "query_coords=Coords.arange(2, offset=2 * jax.lax.axis_index(axis_name)), "
        "key_coords=Coords.arange(4, offset=4 * jax.lax.axis_index(axis_name)).",
    ),
    "no positions within shard_map": (
        lambda: within(Ring("seq"), is_causal=True),
        ValueError,
        "which within shard_map over seq are counted from 0 on each device. If the devices have",
    ),
    "the same positions on all devices": (
        lambda: within(
            Ring("seq"),
            is_causal=True,
            query_coords=Coords.arange(4),
            key_coords=Coords.arange(4),
        ),
        ValueError,
        "key_coords must differ between the devices of 'seq', as a mask, score modifier or dropout "
        "depends on positions, got the same on all of them. If the devices have the sequence in",
    ),
    "dropout without numbers within shard_map": (
        lambda: within(Ring("seq"), dropout=Dropout(0.1, jax.random.key(0))),
        ValueError,
        "needs the numbers of heads and batch elements among those of all devices. Give head_ids=",
    ),
    "keys that are split along another axis": (
        lambda: within(Ring("seq"), TOKENS, P("data"), P("data"), query=QUERY[:1]),
        ValueError,
        "must have queries, keys, values that differ between the devices of 'seq', and nothing "
        "else, got queries. Split them by in_specs.",
    ),
    "values that are not split": (
        lambda: within(Ring("seq"), TOKENS, TOKENS, P(), value=KEY[:, :4]),
        ValueError,
        "and nothing else, got queries, keys. Split them by in_specs.",
    ),
    "queries that are split for all-reduce": (
        lambda: within(AllReduce("seq")),
        ValueError,
        "AllReduce('seq') must have keys, values that differ between the devices of 'seq', and",
    ),
    "a name of an axis outside shard_map": (
        lambda: dot_product_attention(QUERY, KEY, KEY, placement=Ring("seq")),
        ValueError,
        "must be used within shard_map over the mesh axis 'seq'. For arrays of all devices give "
        "the mesh: Ring('seq').on(mesh).",
    ),
    "the name of another axis within shard_map": (
        lambda: within(Ring("sequence")),
        ValueError,
        "must be used within shard_map over the mesh axis 'sequence'.",
    ),
    "an axis of vmap": (
        within_vmap,
        ValueError,
        "must be used within shard_map over the mesh axis 'seq'.",
    ),
    "a mesh within shard_map": (
        lambda: within(Ring("seq").on(MESH)),
        ValueError,
        "must be given arrays of all devices, got those of one, within shard_map over data, seq. "
        "There write placement=Ring('seq').",
    ),
    "a name": (
        lambda: dot_product_attention(QUERY, KEY, KEY, placement="ring"),
        TypeError,
        'placement must be one of flax_attn.sharded, got str. Write placement=sharded.Ring("seq").',
    ),
    "a class": (
        lambda: dot_product_attention(QUERY, KEY, KEY, placement=Ring),
        TypeError,
        "placement must be one of flax_attn.sharded, got the class Ring.",
    ),
    "a mesh twice": (
        lambda: on_mesh(Ring("seq").on(MESH)),
        TypeError,
        "sharded.attention: placement must be one such as Ring(\"seq\"), got Ring('seq').on(",
    ),
    "mesh and placement exchanged": (
        lambda: on_mesh(MESH, mesh=Ring("seq")),
        TypeError,
        'sharded.attention: placement must be one such as Ring("seq"), got Mesh(',
    ),
    "no mesh": (
        lambda: Ring("seq").on("seq"),
        TypeError,
        "Ring('seq').on: mesh must be a jax.sharding.Mesh, got str.",
    ),
    "a number for the batch": (
        lambda: on_mesh(Ring("seq"), batch=0),
        TypeError,
        "Ring('seq').on: batch must be the name of a mesh axis, or several in a tuple, got 0.",
    ),
    "two axes in one placement": (
        lambda: Ring(("near", "far")),
        TypeError,
        "Ring: axis must be the name of a mesh axis, got ('near', 'far'). For several axes nest",
    ),
    "heads inside a ring": (
        lambda: Ring("seq", inner=Heads("heads")),
        ValueError,
        "inner must be a placement that can stand inside another, got Heads('heads'). Turn them",
    ),
    "Ulysses inside an all-gather": (
        lambda: AllGather("far", inner=Ring("middle", inner=Ulysses("near"))),
        ValueError,
        "AllGather: inner must be a placement that can stand inside another, got Ring('middle', "
        "inner=Ulysses('near')). Turn them round.",
    ),
    "a placement in place of an implementation": (
        lambda: dot_product_attention(QUERY, KEY, KEY, implementation=Ring("seq")),
        TypeError,
        "implementation must be that of one device, got the placement Ring('seq'). Give it as "
        "placement=...",
    ),
    "a placement among implementations": (
        lambda: Ring("far", inner=(Ring("near"), "dense")),
        TypeError,
        "Ring: implementation must be that of one device, got the placement Ring('near').",
    ),
    "two implementations": (
        lambda: on_mesh(Ring("seq", inner="dense"), implementation="blockwise"),
        ValueError,
        "implementation must be left out, as the placement names its own, got 'blockwise'",
    ),
    "an unknown implementation": (
        lambda: Ring("seq", inner="flash"),
        ValueError,
        "Ring: implementation must be one of 'decode', 'cudnn', 'pallas_tpu', 'blockwise', ",
    ),
    "a bias that is cut on both sides": (
        lambda: on_mesh(Ring("seq"), bias=np.ones((4, 16, 12), np.float32)),
        ValueError,
        "bias must broadcast to [*B, N, T, S] = [2, 4, 16, 16], got [4, 16, 12].",
    ),
    "more steps than devices": (
        lambda: on_mesh(Ring("seq", shifts=(0, 4))),
        ValueError,
        "shifts of Ring must be below the number of devices 4, got (0, 4).",
    ),
    "steps out of order": (
        lambda: Ring("seq", shifts=(1, 0)),
        ValueError,
        "Ring: shifts must be different numbers from 0 on, sorted, got (1, 0). needed_shifts",
    ),
    "a number of steps": (
        lambda: Ring("seq", shifts=3),
        TypeError,
        "Ring: shifts must be whole numbers in a tuple, got 3. needed_shifts(mask, coords,",
    ),
    "shards that do not divide the tokens": (
        lambda: sharded.needed_shifts(masks.Causal(), Coords.arange(10), shards=4),
        ValueError,
        "must be multiples of shards = 4, got 10 and 10. Pad the sequence.",
    ),
    "no shards": (
        lambda: sharded.needed_shifts(masks.Causal(), Coords.arange(8), shards=0),
        ValueError,
        "needed_shifts: shards must be at least 1, got 0.",
    ),
    "traced positions": (
        lambda: jax.jit(lambda x: sharded.needed_shifts(masks.Causal(), Coords(x), shards=4))(
            jnp.arange(8)
        ),
        TypeError,
        "needed_shifts: mask and coordinates must be known numbers, got traced arrays.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_with_the_reason_and_the_fix(mistake):
    call, kind, text = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
