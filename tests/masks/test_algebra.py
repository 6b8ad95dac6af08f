"""Laws of the algebra, and masks as pytrees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import masks
from flax_attn.coords import Coords
from tests.masks.test_catalogue import CATALOGUE, N, evaluate, evaluate_traced, random_coords

NAMES = list(CATALOGUE)
PAIRS = list(zip(NAMES, NAMES[7:] + NAMES[:7], strict=True))


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_masks_are_a_boolean_algebra(pair):
    a, b = (CATALOGUE[name][0] for name in pair)
    query, key = random_coords("permuted")

    def value(mask):
        return evaluate(mask, query, key)

    A, B = value(a), value(b)
    chex.assert_trees_all_equal(value(a & b), A & B)
    chex.assert_trees_all_equal(value(a | b), A | B)
    chex.assert_trees_all_equal(value(~~a), A)
    chex.assert_trees_all_equal(value(~(a & b)), value(~a | ~b))
    chex.assert_trees_all_equal(value(~(a | b)), value(~a & ~b))
    chex.assert_trees_all_equal(value(a ^ b), value((a | b) & ~(a & b)))
    assert value(a | ~a).all()
    assert not value(a & masks.Empty()).any()
    chex.assert_trees_all_equal(value(masks.Full() & a), value(a | masks.Empty()))


def test_a_mask_has_no_truth_value():
    with pytest.raises(TypeError, match=r"a Mask has no truth value\. Combine masks by &"):
        masks.Causal() and masks.Window(3)
    with pytest.raises(TypeError, match=r"a Mask combines with a Mask, got .*masks\.Dense"):
        masks.Causal() & jnp.ones((2, 2), bool)


REPRS = {
    "Window(left=255, right=0)": masks.Window(left=255),
    "Window(left=None, right=0)": masks.Window(None),
    "Window(left=int32[4], right=7)": masks.Window(jnp.arange(4), jnp.int32(7)),
    "Causal() & SameSegment()": masks.Causal() & masks.SameSegment(),
    "(Causal() | Overlay(feature='image')) & ~Padding()": (masks.Causal() | masks.Overlay())
    & ~masks.Padding(),
    "Dilated(window=6, dilation=2)": masks.Dilated(6, 2),
    "Chunked(size=4)": masks.Chunked(4),
    "Prefix()": masks.Prefix(),
    "Prefix(length=3)": masks.Prefix(3),
    "Strided(stride=4, fixed=False, summary=1)": masks.Strided(4),
    "Interval(lower='lower', upper='upper')": masks.Interval(),
    "Neighborhood(shape=(4, 6), kernel_size=(3, 3))": masks.Neighborhood((4, 6), 3),
    "Neighborhood(shape=(9,), kernel_size=(3,), stride=(2,), dilation=(3,), is_causal=(True,), "
    "axes=('positions',))": masks.Neighborhood(9, 3, 2, 3, True, axes="positions"),
    "Dense(bool[1, 2, 3])": masks.Dense(jnp.ones((2, 3), bool)),
    "Selected(bool[1, 2, 2], block_size=8)": masks.Selected(jnp.zeros((2, 1), int), 8),
    "Selected(bool[1, 2, 4], block_size=8, query_block_size=1, rows='step')": masks.Selected(
        jnp.zeros((2, 1), int), 8, query_block_size=1, num_key_blocks=4, rows="step"
    ),
}


@pytest.mark.parametrize("text", REPRS)
def test_a_mask_reads_as_it_is_written(text):
    assert repr(REPRS[text]) == text


def test_python_numbers_stay_python_numbers():
    mask = masks.Window(3) & masks.Chunked(4) | masks.Strided(5, fixed=True)
    leaves = jax.tree.leaves(mask)
    assert leaves == [3, 0, 4, 5, 1]
    assert all(type(leaf) is int for leaf in leaves)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_survives_flattening(name):
    mask = CATALOGUE[name][0]
    again = jax.tree.map(lambda x: x, mask)
    chex.assert_trees_all_equal_structs(again, mask)
    query, key = random_coords("self")
    chex.assert_trees_all_equal(evaluate(again, query, key), evaluate(mask, query, key))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(mask)]
    assert len(set(paths)) == len(paths)
    jax.tree.map(lambda x: None, mask)  # any thing may take a leaf's place
    jax.eval_shape(lambda mask: mask, mask)


def test_other_numbers_do_not_trace_again():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def count(mask, query, key):
        return evaluate_traced(mask, query, key).sum(dtype=jnp.int32)

    query, key = random_coords("self")
    counts = set()
    for left, size, length in [(1, 3, 2), (4, 6, 3)]:
        prefix = masks.Prefix(length) & masks.SameSegment()
        mask = masks.Window(left) & masks.Chunked(size) | prefix
        counts.add(int(count(mask, query, key)))
    assert len(counts) == 2


def test_settings_are_structure_and_numbers_are_not():
    def same(a, b):
        return jax.tree.structure(a) == jax.tree.structure(b)

    assert same(masks.Neighborhood((8, 8), 3), masks.Neighborhood([8, 8], (3, 3)))
    assert not same(masks.Neighborhood((8, 8), 3), masks.Neighborhood((8, 8), 5))
    assert same(masks.Strided(4), masks.Strided(5))
    assert not same(masks.Strided(4), masks.Strided(4, fixed=True))
    assert not same(masks.Overlay(), masks.Overlay("picture"))


def test_layers_may_have_their_own_windows():
    query, key = random_coords("self")
    lefts = [0, 2, 100]
    layers = masks.Window(jnp.array(lefts), jnp.array([0, 1, 0])) & masks.SameSegment()
    _, seen = jax.lax.scan(
        lambda carry, mask: (carry, evaluate_traced(mask, query, key)), None, layers
    )
    for layer, (left, right) in enumerate(zip(lefts, [0, 1, 0], strict=True)):
        mask = masks.Window(left, right) & masks.SameSegment()
        chex.assert_trees_all_equal(seen[layer], evaluate(mask, query, key))
    mapped = jax.vmap(lambda mask: evaluate_traced(mask, query, key))(layers)
    chex.assert_trees_all_equal(mapped, seen)


def test_a_window_per_layer_and_head_is_sliced_by_a_scan():
    coords = Coords.arange(6)
    lefts = jnp.arange(2 * N).reshape(2, N)
    _, seen = jax.lax.scan(
        lambda carry, left: (carry, evaluate_traced(masks.Window(left), coords, coords)),
        None,
        lefts,
    )
    for layer in range(2):
        expected = evaluate(masks.Window(lefts[layer]), coords, coords)
        chex.assert_trees_all_equal(seen[layer], expected)


def test_a_relation_joins_the_algebra():
    @masks.relation
    def sinks(q, k, *, n):
        """The first n keys."""
        return k.positions < n

    query, key = random_coords("self")
    mask = masks.Causal() & (masks.Window(2) | sinks(n=2))
    assert repr(mask) == "Causal() & (Window(left=2, right=0) | sinks(n=2))"
    seen = evaluate(mask, query, key)[0, 0]
    assert np.flatnonzero(seen[6]).tolist() == [0, 1, 4, 5, 6]
    assert jax.tree.leaves(mask) == [2, 0, 2]

    @masks.relation
    def scores(q, k):
        return q.positions * k.positions

    with pytest.raises(TypeError, match="scores: a relation must return booleans, got int32"):
        evaluate(scores(), query, key)
