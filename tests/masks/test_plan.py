"""Plans: tight where coordinates are orderly, right at the edges, cheap, and made once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from flax_attn import Coords, masks
from flax_attn._record import MissingFieldError
from flax_attn.coords import PerHead, to_record, zigzag
from flax_attn.masks.plan import EMPTY, FULL, PARTIAL, Plan, block_bounds, block_kinds, make_plan

LENGTH = 48


def brute_force(mask, query_coords, key_coords, block, head_ids=None):
    """Kinds from all pairs `[B, N, nq, nk]`, for one batch axis at most."""
    q = to_record(query_coords, "query", 1, head_ids)
    k = to_record(key_coords, "key", 1)
    seen = mask(q, k)
    for record in (q, k):
        if "valid" in record._fields:
            seen = seen & record.valid
    return kinds_of(seen, (len(query_coords), len(key_coords)), block)


def kinds_of(seen, lengths, block):
    """Kinds from pairs that broadcast to `[B, N, T, S]`."""
    seen = np.broadcast_to(seen, (*seen.shape[:2], *lengths))
    counts = [-(-length // size) for length, size in zip(lengths, block, strict=True)]
    kinds = np.zeros((*seen.shape[:2], *counts), np.int8)
    for i in range(counts[0]):
        for j in range(counts[1]):
            rows = slice(i * block[0], (i + 1) * block[0])
            tile = seen[..., rows, j * block[1] : (j + 1) * block[1]]
            some, every = tile.any(axis=(-1, -2)), tile.all(axis=(-1, -2))
            kinds[..., i, j] = np.where(every, FULL, np.where(some, PARTIAL, EMPTY))
    return kinds


def with_features(coords):
    i = coords.positions
    return coords.with_features(
        segment_ids=i // 13,
        is_global=i < 6,
        lower=i,
        upper=i + 9,
        prefix=jnp.full_like(i, 11),
        row=i // 8,
        col=i % 8,
    )


LAYOUTS = {
    "in order": (Coords.arange(LENGTH), Coords.arange(LENGTH)),
    "decoding": (Coords.arange(4, offset=40), Coords.arange(LENGTH)),
    "zig-zag": (zigzag(Coords.arange(LENGTH), 4), zigzag(Coords.arange(LENGTH), 4)),
    "shard of a ring": (zigzag(Coords.arange(LENGTH), 4)[12:24], Coords.arange(LENGTH)),
}
TIGHT = [
    masks.Full(),
    masks.Empty(),
    masks.Causal(),
    ~masks.Causal(),
    masks.Window(9),
    masks.Window(5, 7) & masks.SameSegment(),
    masks.Window(jnp.int32(9), None),
    masks.Chunked(12),
    masks.Chunked(10) & masks.Causal(),
    masks.Dilated(20, 2),
    masks.Dilated(LENGTH, 12),
    masks.Strided(12),
    masks.Strided(12, fixed=True, summary=3),
    masks.Prefix(10),
    masks.Prefix(),
    masks.SameSegment(),
    masks.Causal() & masks.SameSegment(),
    masks.Window(3, 3) | masks.GlobalTokens(),
    masks.Interval(),
    masks.Neighborhood((6,), 5, axes=("row",)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_orderly_coordinates_lose_nothing(layout):
    query_coords, key_coords = map(with_features, LAYOUTS[layout])
    block = (2, 6)
    q, k = to_record(query_coords, "query", 1), to_record(key_coords, "key", 1)
    find = jax.jit(lambda masks, q, k: [(block_kinds(m, q, k, block), m(q, k)) for m in masks])
    for mask, (kinds, seen) in zip(TIGHT, find(TIGHT, q, k), strict=True):
        expected = kinds_of(seen, (len(query_coords), len(key_coords)), block)
        np.testing.assert_array_equal(kinds, expected, err_msg=repr(mask))


def test_a_causal_plan_in_numbers():
    plan = make_plan(masks.Causal(), Coords.arange(1000), block=(256, 128))
    expected = [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [2, 2, 1, 1, 0, 0, 0, 0],
        [2, 2, 2, 2, 1, 1, 0, 0],
        [2, 2, 2, 2, 2, 2, 1, 1],
    ]
    chex.assert_trees_all_equal(plan.kinds[0, 0], np.array(expected))
    chex.assert_shape(plan.kinds, (1, 1, 4, 8))
    chex.assert_type(plan.kinds, jnp.int8)
    assert (plan.block, plan.lengths) == ((256, 128), (1000, 1000))
    assert plan.density == 20 / 32


def test_the_last_block_is_whole_if_its_tokens_are():
    kinds = make_plan(masks.Full(), Coords.arange(10), Coords.arange(7), block=(4, 3)).kinds
    chex.assert_trees_all_equal(kinds[0, 0], np.full((3, 3), FULL))


def test_blocks_larger_than_the_sequence_are_one_block():
    kinds = make_plan(masks.Causal(), Coords.arange(10), block=(64, 64)).kinds
    chex.assert_trees_all_equal(kinds, np.array([[[[PARTIAL]]]]))


def test_padding_makes_blocks_partial_and_padding_alone_empty():
    coords = Coords.from_lengths(jnp.array([5, 8]), 12)
    kinds = make_plan(masks.Full(), coords, block=(4, 4)).kinds
    chex.assert_shape(kinds, (2, 1, 3, 3))
    chex.assert_trees_all_equal(kinds[0, 0], np.array([[2, 1, 0], [1, 1, 0], [0, 0, 0]]))
    chex.assert_trees_all_equal(kinds[1, 0], np.array([[2, 2, 0], [2, 2, 0], [0, 0, 0]]))
    chex.assert_trees_all_equal(make_plan(masks.Padding(), coords, block=(4, 4)).kinds, kinds)
    hidden = make_plan(~masks.Padding(), coords, block=(4, 4)).kinds
    chex.assert_trees_all_equal(hidden, np.zeros((2, 1, 3, 3)))


def test_invalid_tokens_do_not_widen_bounds():
    positions = jnp.array([0, 1, 999, 2, 3, 999], jnp.int32)
    coords = Coords(positions, valid=positions < 900)
    kinds = make_plan(masks.Window(3, 3), coords, block=(3, 3)).kinds
    chex.assert_trees_all_equal(kinds[0, 0], np.array([[PARTIAL] * 2] * 2))
    bounds = block_bounds(positions, 0, 3, coords.valid)
    chex.assert_trees_all_equal(np.array(bounds), np.array([[0, 2], [1, 3]]))


def test_a_cache_of_any_order_equals_brute_force_up_to_partial():
    rng = np.random.default_rng(0)
    keys = Coords(
        jnp.asarray(rng.permutation(64), jnp.int32), valid=jnp.asarray(rng.random(64) < 0.7)
    )
    query = Coords.arange(2, offset=50)
    for mask in (masks.Causal(), masks.Window(15), masks.Chunked(16)):
        kinds = np.asarray(make_plan(mask, query, keys, (1, 4)).kinds)
        exact = brute_force(mask, query, keys, (1, 4))
        assert ((kinds == exact) | (kinds == PARTIAL)).all()
        assert (kinds == exact).mean() > 0.5


def test_batch_and_heads_appear_where_something_varies():
    coords = Coords.from_segments(jnp.arange(24).reshape(2, 12) // jnp.array([[4], [6]]))
    window = masks.Window(jnp.array([2, 100, 5], jnp.int32))
    heads = jnp.arange(3)
    kinds = make_plan(masks.SameSegment(), coords, block=(4, 4)).kinds
    chex.assert_shape(kinds, (2, 1, 3, 3))
    kinds = make_plan(window, Coords.arange(12), block=(4, 4), head_ids=heads).kinds
    chex.assert_shape(kinds, (1, 3, 3, 3))
    mask = window & masks.SameSegment()
    kinds = make_plan(mask, coords, block=(4, 4), head_ids=heads).kinds
    chex.assert_trees_all_equal(kinds, brute_force(mask, coords, coords, (4, 4), heads))
    two = Coords(coords.positions[None], coords.segment_ids[None])
    chex.assert_shape(make_plan(mask, two, block=(4, 4), head_ids=heads).kinds, (1, 2, 3, 3, 3))


def test_a_feature_per_head_is_bounded_per_head():
    speed = jnp.stack([jnp.arange(8), 7 - jnp.arange(8)], axis=-1)  # [T, N]
    coords = Coords.arange(8).with_features(time=PerHead(speed.astype(jnp.float32)))

    @masks.relation
    def later(q, k):
        return k.time <= q.time

    kinds = make_plan(later(), coords, block=(4, 4)).kinds
    chex.assert_trees_all_equal(kinds[0], np.array([[[1, 0], [2, 1]], [[1, 2], [0, 1]]]))


def test_dense_and_its_batch_axes():
    seen = np.zeros((2, 3, 10, 9), bool)
    seen[0, 1, :5, 3:6] = True
    seen[1, 2, 7, 8] = True
    mask = masks.Dense(jnp.asarray(seen))
    kinds = make_plan(mask, Coords.arange(10), Coords.arange(9), block=(5, 3)).kinds
    expected = np.zeros((2, 3, 2, 3))
    expected[0, 1, 0, 1], expected[1, 2, 1, 2] = FULL, PARTIAL
    chex.assert_trees_all_equal(kinds, expected)
    mask = masks.Dense(jnp.asarray(seen[0, 1])) & masks.SameSegment()
    query = Coords.from_segments(jnp.zeros((2, 4, 10), jnp.int32).at[1, 2].set(3))
    kinds = make_plan(mask, query, query[:9], block=(5, 3)).kinds
    chex.assert_shape(kinds, (2, 4, 1, 2, 3))
    chex.assert_trees_all_equal(kinds[1, 2, 0], expected[0, 1])
    with pytest.raises(ValueError, match=r"\[T, S\] = \[10, 10\], got \[10, 9\]"):
        make_plan(mask, query)


def test_any_aligned_field_of_a_mask_is_bounded():
    from flax_attn._pytree import pytree
    from flax_attn.coords import Aligned

    @pytree
    class Above(masks.Mask):
        scores: Aligned
        threshold: float

        def __call__(self, q, k):
            return (self.scores.values > self.threshold) & (q.positions >= k.positions)

    scores = jnp.arange(48, dtype=jnp.float32).reshape(1, 6, 8)
    mask = Above(Aligned(scores, "bnts"), 20.5)
    kinds = make_plan(mask, Coords.arange(6, offset=4), Coords.arange(8), block=(3, 2)).kinds
    chex.assert_trees_all_equal(kinds[0, 0], np.array([[0, 0, 1, 1], [2, 2, 2, 2]]))


def test_no_block_of_pairs_is_ever_evaluated_and_memory_is_linear():
    packed = jax.ShapeDtypeStruct((32768,), jnp.int32)

    def kinds(ids, size):
        mask = masks.Causal() & masks.SameSegment() & masks.Window(size) | masks.Chunked(4096)
        return make_plan(mask, Coords.from_segments(ids), block=(512, 512)).kinds

    jaxpr = jax.make_jaxpr(kinds)(packed, jnp.int32(1024))
    sizes = [v.aval.size for eqn in all_equations(jaxpr.jaxpr) for v in eqn.outvars]
    assert max(sizes) == 32768
    assert len(sizes) < 400


def all_equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                yield from all_equations(value.jaxpr)


def test_new_segments_and_sizes_do_not_retrace():
    traces = 0

    @masks.relation
    def near(q, k, *, radius):
        nonlocal traces
        traces += 1
        return abs(q.positions - k.positions) <= radius

    densities = []
    for radius, count in ((1, 3), (2, 4), (40, 1)):
        ids = jnp.arange(48, dtype=jnp.int32) * count // 48
        mask = near(radius=jnp.int32(radius)) & masks.SameSegment()
        densities.append(make_plan(mask, Coords.from_segments(ids), block=(4, 4)).density)
    assert traces == 1
    # 12 blocks a side. Neighbours meet across a block's edge, except between segments.
    assert densities == [(12 + 2 * 9) / 144, (12 + 2 * 8) / 144, 142 / 144]


def test_a_plan_inside_jit_and_vmap_is_the_same():
    coords = Coords.from_segments(jnp.arange(2 * 24).reshape(2, 24) // 7)
    mask = masks.Causal() & masks.SameSegment()
    plan = make_plan(mask, coords, block=(4, 4))
    jitted = jax.jit(functools.partial(make_plan, block=(4, 4)))(mask, coords)
    chex.assert_trees_all_equal(jitted.kinds, plan.kinds)
    assert (jitted.block, jitted.lengths) == (plan.block, plan.lengths)
    mapped = jax.vmap(lambda c: make_plan(mask, c, block=(4, 4)).kinds)(coords)
    chex.assert_trees_all_equal(mapped[:, 0], plan.kinds)


@pytest.mark.parametrize("check_vma", [True, False])
def test_heads_over_devices_keep_their_windows(check_vma):
    mesh = jax.make_mesh((4,), ("heads",), axis_types=(AxisType.Auto,))
    sizes = jnp.array([3, 9, 17, 40], jnp.int32)
    coords = Coords.arange(LENGTH)

    def kinds(head_ids, sizes):
        mask = masks.Window(sizes) & masks.Chunked(sizes + 5)
        return make_plan(mask, coords, block=(4, 4), head_ids=head_ids).kinds

    specs = (PartitionSpec("heads"), PartitionSpec())
    spread = jax.jit(
        jax.shard_map(
            kinds,
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(None, "heads"),
            check_vma=check_vma,
        )
    )(jnp.arange(4), sizes)
    chex.assert_trees_all_equal(spread, kinds(jnp.arange(4), sizes))


def test_the_picture_and_the_repr():
    plan = make_plan(masks.Causal() & masks.Window(99), Coords.arange(400), block=(50, 100))
    lines = ["▒···", "▒···", "▒▒··", "▒▒··", "·▒▒·", "·▒▒·", "··▒▒", "··▒▒"]
    assert str(plan) == plan.picture() == "\n".join(lines)
    assert (
        repr(plan) == "Plan(int8[1, 1, 8, 4], block=(50, 100), lengths=(400, 400), density=0.438)"
    )


def test_a_large_picture_joins_blocks():
    plan = make_plan(masks.Causal(), Coords.arange(1024), block=(8, 8))
    lines = str(plan).split("\n")
    assert {len(line) for line in lines} == {len(lines)} == {64}
    assert lines[0] == "▒" + "·" * 63
    assert lines[63] == "█" * 63 + "▒"


def test_a_picture_of_one_batch_element_and_head():
    coords = Coords.from_lengths(jnp.array([4, 8]), 8)
    plan = make_plan(masks.Window(jnp.array([0, 9])), coords, block=(4, 4), head_ids=jnp.arange(2))
    assert plan.picture(batch=0, head=1) == "▒·\n··"
    assert plan.picture(batch=1, head=0) == "▒·\n·▒"
    assert plan.picture(batch=1, head=1) == "▒·\n█▒"


def test_a_plan_is_a_pytree_with_static_sizes():
    plan = make_plan(masks.Causal(), Coords.arange(16), block=(4, 4))
    leaves, structure = jax.tree.flatten(plan)
    assert len(leaves) == 1
    assert structure == jax.tree.structure(Plan(leaves[0], (4, 4), (16, 16)))
    assert structure != jax.tree.structure(Plan(leaves[0], (4, 8), (16, 16)))

    @jax.jit
    def share(plan):
        assert "density" not in repr(plan)
        return plan.density

    assert float(share(plan)) == plan.density == 10 / 16


def test_empty_sequences_have_no_blocks():
    plan = make_plan(masks.Causal(), Coords.arange(0), Coords.arange(8), block=(4, 4))
    chex.assert_shape(plan.kinds, (1, 1, 0, 2))


def test_block_kinds_works_on_tiles_of_any_batch_rank():
    coords = Coords.from_segments(jnp.arange(2 * 3 * 8).reshape(2, 3, 8) // 5)
    q, k = to_record(coords, "query", 2), to_record(coords, "key", 2)
    kinds = block_kinds(masks.SameSegment(), q, k, (4, 4))
    chex.assert_shape(kinds, (2, 3, 1, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((jnp.ones((4, 4)), Coords.arange(4)), TypeError, r"must be a Mask.*Dense\(array\)"),
        ((masks.Causal(), jnp.arange(4)), TypeError, r"query_coords must be Coords"),
        ((masks.Causal(), Coords.arange(4), jnp.arange(4)), TypeError, "key_coords must be Coords"),
        ((masks.Causal(), Coords.arange(4), None, (0, 4)), ValueError, r"at least 1, got \(0, 4\)"),
        ((masks.SameSegment(), Coords.arange(4)), MissingFieldError, "from_segments"),
        ((masks.Window(jnp.arange(4)), Coords.arange(4)), ValueError, "head_ids must be given"),
    ],
)
def test_errors_name_the_fix(arguments, error, message):
    with pytest.raises(error, match=message):
        make_plan(*arguments)
