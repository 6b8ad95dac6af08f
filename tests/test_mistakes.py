"""Mistakes of newcomers with coordinates, masks, modifiers and the like: what they read."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import (
    Coords,
    Dropout,
    Sigmoid,
    Softmax,
    additive_attention,
    attention,
    attention_weights,
    dot_product_attention,
    make_plan,
    masks,
    merge,
    normalizers,
    positions,
    scores,
)
from flax_attn.coords import zigzag

Q = jnp.ones((2, 5, 4, 8))
KEY = jax.random.key(0)
C = Coords.arange(5)
attend = functools.partial(dot_product_attention, Q, Q, Q)
additive = functools.partial(additive_attention, Q[..., 0, :], Q[..., 0, :], Q[..., 0, :])


def drop(*arguments, **options):
    return attend(dropout=Dropout(*arguments, **options))


@masks.relation
def near(q, k, *, radius):
    return abs(q.positions - k.positions) <= radius


CASES = {
    # numbers per head
    "slopes of 8": (
        lambda: attend(score_mod=scores.ALiBi.for_heads(8)),
        ValueError,
        r"slopes of ALiBi must be \[N\] for N = 4 .*got 8\. Give ALiBi\.for_heads\(4\); or",
    ),
    "slopes in a pipe": (
        lambda: attend(score_mod=scores.SoftCap(3.0) >> scores.ALiBi(jnp.ones(3))),
        ValueError,
        "slopes of ALiBi .* got 3",
    ),
    "table of 2": (
        lambda: attend(score_mod=scores.RelativeBias(jnp.zeros((5, 2)))),
        ValueError,
        r"table of RelativeBias must be \[\.\.\., N\] for N = 4 .* got 2",
    ),
    "table of T5": (
        lambda: attend(score_mod=scores.T5Bias(jnp.zeros((4, 32)))),
        ValueError,
        "table of T5Bias .* got 32",
    ),
    "factors": (
        lambda: attend(score_mod=scores.Scale(jnp.ones(8))),
        ValueError,
        "factor of Scale .* got 8",
    ),
    "windows": (
        lambda: attend(mask=masks.Causal() & ~masks.Window(np.arange(8))),
        ValueError,
        "left of Window .* got 8",
    ),
    "half of the slopes": (
        lambda: scores.ALiBi.for_heads(2.5),
        TypeError,
        "for_heads: num_heads must be one whole number, got 2.5",
    ),
    "a modifier that is not called": (
        lambda: attend(score_mod=scores.ALiBi),
        TypeError,
        r"score_mod must be a ScoreMod, got the class ALiBi\. Call it: scores\.ALiBi\(",
    ),
    "a list of modifiers": (
        lambda: attend(score_mod=[scores.SoftCap(3.0)]),
        TypeError,
        "got list. Compose several by >>",
    ),
    "an array as a modifier": (
        lambda: attend(score_mod=jnp.ones((5, 5))),
        TypeError,
        r"scores\.Bias\(array\), or pass it as the argument bias",
    ),
    # dense masks
    "a list as a mask": (
        lambda: masks.Dense([[True]]),
        TypeError,
        r"must be a boolean array, got list\. Write jnp\.asarray\(array, bool\)",
    ),
    "an additive mask": (
        lambda: masks.Dense(jnp.full((5, 5), -1e9)),
        TypeError,
        r"got float32.*astype\(bool\)\. Pass an additive mask as bias",
    ),
    "a mask of a mask": (
        lambda: masks.Dense(masks.Causal()),
        TypeError,
        "got Causal. Use the mask as it is",
    ),
    # coordinates
    "no positions": (lambda: Coords(None), TypeError, r"got NoneType\. Write Coords\.arange\(T\)"),
    "positions of coordinates": (lambda: Coords(C), TypeError, "got Coords. Use it as it is"),
    "a length": (lambda: Coords(5), ValueError, r"got a single number.*Coords\.arange\(length\)"),
    "times": (lambda: Coords([0.5, 1.0]), TypeError, "got float64.*such as times, are a feature"),
    "ragged": (lambda: Coords([[1], [1, 2]]), TypeError, "lists of unequal lengths"),
    "a length of a list": (lambda: Coords.arange([3]), TypeError, "one whole number, got .3."),
    "a negative length": (lambda: Coords.arange(-1), ValueError, "at least 0, got -1"),
    "half an offset": (lambda: Coords.arange(3, 0.5), TypeError, "offset must be integers"),
    "lengths": (
        lambda: Coords.from_lengths(jnp.ones(2), 3),
        TypeError,
        "from_lengths: lengths must be integers, got float32",
    ),
    "lengths and length": (
        lambda: Coords.from_lengths(3, jnp.arange(3)),
        TypeError,
        "length must be one whole number",
    ),
    "one segment": (lambda: Coords.from_segments(3), ValueError, "a single number"),
    "segments of floats": (
        lambda: Coords.from_segments([1.0]),
        TypeError,
        "segment_ids must be integers, got float64",
    ),
    "segments of another length": (
        lambda: Coords([1, 2, 3], [1, 2]),
        ValueError,
        r"segment_ids must be \[\*B, T\] with T = 3, the number of positions, got \[2\]\.$",
    ),
    "numbers of another length": (
        lambda: Coords([1, 2, 3], numbers=[1, 2]),
        ValueError,
        r"numbers must be \[\*B, T\] with T = 3",
    ),
    "validity as numbers": (
        lambda: Coords([1, 2], valid=[1, 0]),
        TypeError,
        r"valid must be boolean.*valid\.astype\(bool\)",
    ),
    "a size of a grid": (lambda: Coords.grid(2.0, 3), TypeError, "height must be one whole number"),
    "parents as floats": (lambda: Coords.tree([-1, 0.0]), TypeError, "parents must be integers"),
    "traced parents": (
        lambda: jax.jit(Coords.tree)(jnp.array([-1, 0])),
        TypeError,
        "parents must be known numbers, got a traced array",
    ),
    "one token": (lambda: C[0], TypeError, r"keep the token axis, got 0\. Write coords\[\[0\]\]"),
    "tokens by validity": (
        lambda: C[jnp.ones(5, bool)],
        TypeError,
        r"got booleans.*jnp\.flatnonzero\(index\)",
    ),
    "a token beyond": (lambda: C[jnp.array([5])], IndexError, r"0 \.\.\. 4, got 5 \.\.\. 5"),
    "an axis": (lambda: C[:, None], TypeError, "must be a slice or an array"),
    "a feature as an attribute": (
        lambda: Coords.grid(2, 2).row,
        AttributeError,
        r"no attribute 'row'. It is a feature: coords\.features\['row'\]",
    ),
    "no feature": (lambda: C.row, AttributeError, "no attribute or feature 'row'"),
    "text as a feature": (lambda: C.with_features(x="abc"), TypeError, "array of numbers, got str"),
    "None as a feature": (lambda: C.with_features(x=None), TypeError, "numbers, got NoneType"),
    "numbers in a relation": (
        lambda: attend(mask=masks.relation(lambda q, k: q.numbers == k.numbers)()),
        ValueError,
        "cannot read the numbers of tokens",
    ),
    "zigzag": (lambda: zigzag(C, 2), ValueError, "multiple of 2 · shards = 4, got 5"),
    # plans
    "a plan of a class": (
        lambda: make_plan(masks.Causal, C),
        TypeError,
        r"got the class Causal\. Call it: masks\.Causal\(\)",
    ),
    "a plan of a relation": (lambda: make_plan(near, C), TypeError, r"Call it.*near\(\*, radius\)"),
    "a plan of an array": (
        lambda: make_plan(jnp.ones((5, 5), bool), C),
        TypeError,
        r"Wrap an array: masks\.Dense\(array\)",
    ),
    "a plan of a function": (
        lambda: make_plan(lambda q, k: True, C),
        TypeError,
        r"Make a relation from it: masks\.relation\(function\)\(\)",
    ),
    "a plan of a name": (lambda: make_plan("causal", C), TypeError, r"masks\.Causal\(\)"),
    "a plan the wrong way": (
        lambda: make_plan(C, masks.Causal()),
        TypeError,
        r"got Coords\. Write make_plan\(mask, query_coords\)",
    ),
    "a plan of a length": (
        lambda: make_plan(masks.Causal(), 5),
        TypeError,
        r"query_coords must be Coords, got int\..* write Coords\.arange",
    ),
    "one block": (
        lambda: make_plan(masks.Causal(), C, block=2),
        ValueError,
        r"block must be the numbers.*got 2\. Write block=\(256, 256\)",
    ),
    "half a block": (
        lambda: make_plan(masks.Causal(), C, block=(2.5, 2)),
        TypeError,
        "block must be one whole number, got 2.5",
    ),
    "a number of heads": (
        lambda: make_plan(masks.Causal(), C, head_ids=4),
        ValueError,
        r"head_ids must be \[N\], got \[\]\. Write jnp\.arange",
    ),
    # masks that read features
    "marks in a mask": (
        lambda: masks.GlobalTokens(jnp.ones(5, bool)),
        TypeError,
        r"name of a feature.*with_features\(is_global=values\)",
    ),
    "images in a mask": (lambda: masks.Overlay(np.ones(5)), TypeError, r"with_features\(image="),
    "ends in a mask": (lambda: masks.Interval(0, 3), TypeError, r"with_features\(lower="),
    "segments in a mask": (
        lambda: masks.SameSegment(jnp.ones(5, int)),
        TypeError,
        r"no parameters.*reads segment_ids.*Coords\.from_segments\(segment_ids\)",
    ),
    "validity in a mask": (lambda: masks.Padding(valid=1), TypeError, r"Coords\.from_lengths"),
    "parents in a mask": (lambda: masks.Tree([-1, 0]), TypeError, r"Coords\.tree\(parents\)"),
    "a length in a mask": (
        lambda: masks.Causal(5),
        TypeError,
        r"Write masks\.Causal\(\)",
    ),
    "an array of a mask": (lambda: np.asarray(masks.Causal()), TypeError, "not an array"),
    "a JAX array of a mask": (lambda: jnp.asarray(masks.Causal()), TypeError, "not an array"),
    # normalisers
    "a class of normaliser": (
        lambda: attend(normalizer=Softmax),
        TypeError,
        r"got the class Softmax\. Call it: Softmax\(\)",
    ),
    "sinks of other heads": (
        lambda: attend(normalizer=Softmax([0.0, 1.0, 2.0])),
        ValueError,
        r"sink must be one number or \[N\] = \[4\], got \[3\]",
    ),
    "a sink in words": (lambda: Softmax("yes"), TypeError, "sink must be a number.*got str"),
    "a sink or none": (lambda: Softmax(True), TypeError, "sink must be a number.*got bool"),
    "a bias in words": (lambda: Sigmoid("log"), TypeError, "bias must be a number.*got str"),
    "no alpha": (lambda: normalizers.Entmax("2"), TypeError, "alpha must be a known number"),
    "k": (lambda: normalizers.TopK(2.0), ValueError, "k must be an integer of at least 1"),
    "parts of one": (
        lambda: merge(attention.partial(Q, Q, Q)),
        TypeError,
        r"got one Partial\. Write merge\(\[part\]\)",
    ),
    "finalize a list": (
        lambda: attention.finalize([attention.partial(Q, Q, Q)]),
        TypeError,
        r"must be a Partial, got list\. Join parts first",
    ),
    "finalize by a class": (
        lambda: attention.finalize(attention.partial(Q, Q, Q), Softmax),
        TypeError,
        "finalize: normalizer must be a Normalizer.*Call it",
    ),
    "finalize by other sinks": (
        lambda: attention.finalize(attention.partial(Q, Q, Q), Softmax(jnp.ones(3))),
        ValueError,
        r"finalize: the sink must be .*\[4\], got \[3\]",
    ),
    "finalize a sigmoid by a sink": (
        lambda: attention.finalize(
            attention.partial(Q, Q, Q, normalizer=Sigmoid()), Softmax(jnp.ones(4))
        ),
        ValueError,
        "a sink needs the LSE",
    ),
    # dropout
    "key and rate": (lambda: drop(KEY, 0.1), TypeError, r"rate must be a number, got key<fry>"),
    "a rate in words": (lambda: drop("a", KEY), TypeError, "rate must be a number, got str"),
    "no rate": (lambda: drop(None, KEY), TypeError, "rate must be a number, got NoneType"),
    "rates": (lambda: drop(jnp.ones(3), KEY), ValueError, r"one number, got \[3\]"),
    "percent": (lambda: drop(10, KEY), ValueError, r"in \[0, 1\], got 10"),
    "a seed": (lambda: drop(0.1, 42), TypeError, r"one JAX key, got 42\. Write jax\.random\.key"),
    # weights, additive attention, encodings
    "a row": (
        lambda: attention_weights(Q, Q, rows=3),
        ValueError,
        r"rows must be a slice.*got 3\. Write rows=\[3\]",
    ),
    "rows in words": (
        lambda: attention_weights(Q, Q, rows="all"),
        TypeError,
        "rows must be a slice",
    ),
    "an LSE of a number": (
        lambda: attention_weights(Q, Q, lse=3),
        ValueError,
        r"lse must be .*got \[\]",
    ),
    "kernels as maps": (
        lambda: additive(jnp.ones((8, 3)), jnp.ones((8, 3)), jnp.ones((3, 1))),
        TypeError,
        r"query_map must be a map.*maps\.dense\(kernel\)",
    ),
    "a mask of additive attention": (
        lambda: additive(*[lambda x: x[..., :1]] * 3, mask=masks.Causal()),
        TypeError,
        r"got Causal\. A Mask is for dot_product_attention",
    ),
    "encodings of coordinates": (
        lambda: positions.sinusoidal(C, 4),
        TypeError,
        r"got Coords\. Write coords\.positions",
    ),
    "learned places of coordinates": (
        lambda: positions.learned(C, jnp.eye(5)),
        TypeError,
        r"got Coords\. Write coords\.positions",
    ),
    "features as a float": (
        lambda: positions.sinusoidal(jnp.arange(3), 4.0),
        TypeError,
        "features must be one whole number, got 4.0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_answered_with_what_to_write(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        call()


def test_numbers_of_numpy_and_lists_are_taken():
    """What a newcomer may well write, and what works."""
    assert len(Coords.arange(np.int64(3), np.int32(2))) == 3
    for actual, expected in (
        (Coords([3, 1]).positions, [3, 1]),
        (C[[-1, 0]].positions, [4, 0]),
        (C[[]].positions, []),
        (Coords.from_lengths([1, 2], 2).valid, [[True, False], [True, True]]),
    ):
        chex.assert_trees_all_equal(actual, np.array(expected))
    assert normalizers.ReLU(np.int64(4)).length == normalizers.TopK(np.int32(4)).k == 4
    assert masks.Neighborhood(np.array([8, 8]), np.int64(3)).shape == (8, 8)
    kept = drop(0.5, KEY, batch_ids=[0, 1])
    chex.assert_trees_all_equal(kept, drop(np.float32(0.5), KEY))
    own = scores.ALiBi.for_heads(8)
    part = attend(score_mod=own, head_ids=[2, 3, 4, 5])
    whole = attend(score_mod=scores.ALiBi(own.slopes[2:6]))
    chex.assert_trees_all_close(part, whole)
