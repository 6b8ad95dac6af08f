"""Coordinates: constructors, slicing, orders, and what they refuse."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, dot_product_attention, make_plan, masks
from flax_attn.coords import PerHead, striped, unstriped, unzigzag, zigzag
from tests.tolerances import FORWARD, assert_close


def test_constructors():
    chex.assert_trees_all_equal(Coords.arange(3, offset=7).positions, np.array([7, 8, 9]))
    each = Coords.arange(2, offset=jnp.array([0, 10])).positions
    chex.assert_trees_all_equal(each, np.array([[0, 1], [10, 11]]))
    ids = jnp.array([[4, 4, 7, 7, 7], [1, 2, 2, 2, 1]])
    chex.assert_trees_all_equal(
        Coords.from_segments(ids).positions, np.array([[0, 1, 2, 3, 4]] * 2)
    )
    again = Coords.from_segments(ids, restart=True)
    chex.assert_trees_all_equal(again.positions, np.array([[0, 1, 0, 1, 2], [0, 0, 1, 2, 0]]))
    chex.assert_trees_all_equal(again.segment_ids, ids)
    padded = Coords.from_lengths(jnp.array([1, 3]), 3)
    chex.assert_trees_all_equal(padded.valid, np.array([[1, 0, 0], [1, 1, 1]]))
    grid = Coords.grid(2, 3).features
    chex.assert_trees_all_equal(grid["row"], np.array([0, 0, 0, 1, 1, 1]))
    chex.assert_trees_all_equal(grid["col"], np.array([0, 1, 2, 0, 1, 2]))
    tree = Coords.tree([-1, 0, 0, 1, -1])
    chex.assert_trees_all_equal(tree.positions, np.array([0, 1, 1, 2, 0]))
    chex.assert_trees_all_equal(tree.features["enter"], np.array([0, 1, 3, 2, 4]))
    chex.assert_trees_all_equal(tree.features["leave"], np.array([4, 3, 4, 3, 5]))


def test_slices_and_gathers_take_every_field():
    coords = Coords.arange(5).with_features(
        valid=jnp.arange(5) < 3, gate=PerHead(jnp.arange(10.0).reshape(5, 2))
    )
    chex.assert_trees_all_equal(coords[1:3].positions, np.array([1, 2]))
    chex.assert_trees_all_equal(coords[1:3].features["gate"].values, np.array([[2, 3], [4, 5]]))
    chex.assert_trees_all_equal(coords[jnp.array([4, 0])].valid, np.array([False, True]))
    assert len(coords[2:]) == 3
    assert repr(coords) == (
        "Coords(positions=int32[5], valid=bool[5], gate=PerHead(values=float32[5, 2]))"
    )


def test_they_are_pytrees():
    coords = Coords.from_segments(jnp.zeros((2, 4), int)).with_features(x=jnp.ones(4))
    twice = jax.jit(lambda c: jax.tree.map(lambda x: 2 * x, c))(coords)
    chex.assert_trees_all_equal(twice.features["x"], 2 * np.ones(4))
    chex.assert_trees_all_equal_structs(twice, coords)
    stacked = jax.vmap(lambda o: Coords.arange(3, o))(jnp.arange(2))
    chex.assert_shape(stacked.positions, (2, 3))


def test_zigzag_shares_causal_work_and_can_be_undone():
    x = {"a": jnp.arange(24).reshape(1, 24), "c": Coords.arange(24)}
    mixed = zigzag(x, 3)
    chex.assert_trees_all_equal(mixed["c"].positions, mixed["a"][0])
    work = np.asarray(mixed["c"].positions).reshape(3, 8).sum(1)
    assert len(set(work)) == 1
    back = unzigzag(mixed, 3)
    chex.assert_trees_all_equal(back["a"], x["a"])
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 24, 2, 8)).astype(np.float32)
    c = mixed["c"]
    actual = dot_product_attention(
        *zigzag((q, k, v), 3), mask=masks.Causal(), query_coords=c, key_coords=c
    )
    expected = dot_product_attention(q, k, v, is_causal=True)
    assert_close(unzigzag(actual, 3), expected, FORWARD["float32"])


def test_striped_deals_tokens_out_in_turn_and_can_be_undone():
    x = {"a": jnp.arange(24).reshape(1, 24), "c": Coords.arange(24)}
    mixed = striped(x, 3)
    chex.assert_trees_all_equal(mixed["c"].positions, mixed["a"][0])
    assert (mixed["a"].reshape(3, 8) % 3 == np.arange(3)[:, None]).all()
    back = unstriped(mixed, 3)
    chex.assert_trees_all_equal(back["a"], x["a"])
    chex.assert_trees_all_equal(back["c"].numbers, x["c"].numbers)


def blocks_of_shards(coords, shards):
    """How many blocks of scores of each shard of queries and of keys are not empty.

    A shard is two blocks long.
    """
    length = len(coords) // (2 * shards)
    filled = np.asarray(make_plan(masks.Causal(), coords, block=(length, length)).kinds[0, 0]) > 0
    return filled.reshape(shards, 2, shards, 2).sum((1, 3))


def test_orders_balance_the_blocks_of_a_causal_sequence():
    c = Coords.arange(8 * 2 * 16)
    assert blocks_of_shards(c, 8).sum(1).tolist() == [3, 7, 11, 15, 19, 23, 27, 31]
    assert blocks_of_shards(zigzag(c, 8), 8).sum(1).tolist() == [17] * 8
    # Only the later half of a shard's keys is hidden from the earlier half of any shard's queries.
    assert blocks_of_shards(striped(c, 8), 8).sum(1).tolist() == [24] * 8


def test_orders_balance_each_step_of_a_ring():
    """In a step each shard of queries has one of keys, and all wait for the slowest."""
    c = Coords.arange(8 * 2 * 16)
    for order, others in ((zigzag, 2), (striped, 3)):
        blocks = blocks_of_shards(order(c, 8), 8)
        assert (blocks == np.where(np.eye(8), 3, others)).all()


@pytest.mark.parametrize("shards", [8, 64, 512])
def test_orders_balance_causal_scores_within_5_percent(shards):
    c = Coords.arange(shards * 64)
    pairs = {
        order: np.asarray(order(c, shards).positions + 1).reshape(shards, -1).sum(1)
        for order in (zigzag, striped)
    }
    assert (pairs[zigzag] == pairs[zigzag][0]).all()
    assert pairs[striped].max() < 1.05 * pairs[striped].mean()
    blocks = blocks_of_shards(zigzag(c, shards), shards).sum(1)
    assert blocks.max() < 1.05 * blocks.mean()


def test_the_number_of_tokens_may_be_unknown_until_a_program_is_called():
    """`jax.export` of a program of any length."""
    (t,) = jax.export.symbolic_shape("t")

    def coordinates(ids):
        c = Coords.from_segments(ids, restart=True)
        c = c.with_features(valid=Coords.arange(ids.shape[0], offset=3).positions < 9)[::-1]
        return c.positions, c.numbers, c.valid

    exported = jax.export.export(jax.jit(coordinates))(jax.ShapeDtypeStruct((t,), jnp.int32))
    for length in (5, 9):
        ids = jnp.arange(length, dtype=jnp.int32) // 2
        chex.assert_trees_all_equal(exported.call(ids), coordinates(ids))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Coords(jnp.ones(3)), TypeError, "positions must be integers, got float32"),
        (lambda: Coords(jnp.asarray(3)), ValueError, r"\[\*B, T\], got a single number"),
        (lambda: Coords.arange(3).with_features(valid=jnp.ones(3)), TypeError, "valid must be boo"),
        (lambda: Coords.arange(3).with_features(x=jnp.ones(4)), ValueError, r"T = 3.*got \[4\]"),
        (lambda: Coords(jnp.arange(3), x=jnp.ones((3, 2))), ValueError, r"PerHead\(x\)"),
        (lambda: Coords(jnp.arange(3), arange=jnp.ones(3)), ValueError, "must not be called"),
        (lambda: Coords.tree([1, 0]), ValueError, "cycle"),
        (lambda: Coords.tree([5]), ValueError, "one number per node"),
        (lambda: zigzag(jnp.ones(6), 2, 0), ValueError, "multiple of 2 · shards = 4, got 6"),
        (lambda: striped(jnp.ones(5), 2, 0), ValueError, "striped: .* of shards = 2, got 5"),
        (lambda: unstriped(jnp.ones(5), 0, 0), ValueError, "unstriped: .* of shards = 0, got 5"),
        (lambda: striped(jnp.ones(6), 1.5, 0), TypeError, "shards must be one whole number"),
    ],
)
def test_what_they_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()
