"""The implementation "decode": dense attention that reads the visible keys only, and once."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import (
    Coords,
    Dropout,
    Sigmoid,
    Softmax,
    dot_product_attention,
    explain,
    masks,
    scores,
)
from flax_attn.attention import Decode, Dense, decode
from flax_attn.normalizers import Entmax, ReLU, TopK
from tests.runs import long
from tests.tolerances import FORWARD, assert_close

B, T, S, N, K, D, DV = 2, 3, 37, 4, 2, 8, 6
SOFTMAX = Softmax()
SLOPES = np.float32([0.3, 0.2, 0.1, 0.05])


def draw(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def arrays(rng):
    return [draw(rng, B, *size) for size in ((T, N, D), (S, K, D), (S, K, DV))]


@functools.cache
def attend(implementation, normalizer=SOFTMAX, rate=0.0, score_mod=None):
    """Attention under a mask that is data, to keys that are data."""

    def run(query, key, value, mask, valid, first):
        mask = masks.Dense(mask) & masks.Causal()
        return dot_product_attention(
            query, key, value, mask=mask, score_mod=score_mod, normalizer=normalizer,
            dropout=Dropout(rate, jax.random.key(1)) if rate else None,
            query_coords=Coords.arange(T, first), key_coords=Coords.arange(S).with_features(
                valid=valid
            ), implementation=implementation, return_residual=isinstance(normalizer, Softmax),
        )  # fmt: skip

    return jax.jit(run)


def steep(s, q, k, heads):
    """Hides what is far, by −∞; overflows for what is near."""
    far = q.positions - k.positions
    return jnp.where(far > 20, -jnp.inf, s * jnp.where(far == 1, 1e38, 1.0))


PARTS = {
    "softmax": (Softmax(), 0.0, None),
    "dropout, modifiers and a sink": (
        Softmax(jnp.arange(4.0)),
        0.5,
        scores.ALiBi(SLOPES) >> scores.SoftCap(3.0),
    ),
    "all are dropped": (Softmax(), 1.0, None),
    "a modifier that hides and overflows": (Softmax(), 0.0, scores.score_mod(steep)),
    "sigmoid": (Sigmoid(-1.0), 0.0, None),
    "relu": (ReLU(9), 0.0, None),
    "entmax": (Entmax(1.5), 0.0, None),
    "top k": (TopK(1), 0.0, None),
}


def hurt(rng, *arrays):
    """NaN and infinities in some vectors."""
    hurt = []
    for x in arrays:
        x = x.copy()
        for value in (np.nan, np.inf, -np.inf):
            where = rng.random(x.shape[:-1]) < 0.04
            x[where, rng.integers(x.shape[-1])] = value
        hurt.append(x)
    return hurt


def compare(parts, rng, is_hurt):
    given = arrays(rng)
    if is_hurt:
        given = hurt(rng, *given)
    mask = rng.random((B, N, T, S)) < rng.choice([0.05, 0.5, 1.0])
    valid = rng.random((B, S)) < rng.choice([0.3, 0.9])
    first = rng.integers(0, S, B)
    normalizer, rate, score_mod = PARTS[parts]
    small = Decode(fewest_keys=4)
    found, wanted = (
        attend(implementation, normalizer, rate, score_mod)(*given, mask, valid, first)
        for implementation in (small, Dense())
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        known = ~np.isnan(np.asarray(b))
        assert_close(np.asarray(a)[known], np.asarray(b)[known], FORWARD["float32"], parts)


@pytest.mark.parametrize("parts", PARTS)
def test_it_is_dense_attention_whatever_is_visible_finite_or_not(parts):
    for seed in range(8):
        compare(parts, np.random.default_rng(seed), is_hurt=seed > 1)


@long
@pytest.mark.parametrize("parts", PARTS)
def test_it_is_dense_attention_in_many_random_cases(parts):
    for seed in range(8, 200):
        compare(parts, np.random.default_rng(seed), is_hurt=seed % 3 > 0)


class AsTheyAre(Decode):
    """Without the second computation, of inputs that are not finite."""

    def forward(self, problem, target):
        return self._attend_as_it_is(decode._with_axes_swapped(problem), problem.visible(), target)


def test_only_the_first_keys_are_read():
    """Those beyond the prefix are NaN, and nothing replaces them: 0 · NaN would be NaN."""
    q, k, v = arrays(np.random.default_rng(0))
    sees_all = np.ones((B, N, T, S), bool), np.ones((B, S), bool)
    run = attend(AsTheyAre(fewest_keys=4), SOFTMAX)
    for first, prefix in ((0, 4), (1, 4), (2, 8), (5, 8), (6, 16), (14, 32), (30, S)):
        poisoned = [x.copy() for x in (k, v)]
        for x in poisoned:
            x[:, prefix:] = np.nan
        found = run(q, *poisoned, *sees_all, np.array([0, first]))
        wanted = attend(Dense())(q, k, v, *sees_all, np.array([0, first]))
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b, FORWARD["float32"], f"{first}")
        if prefix < S:  # and the last of the prefix is read
            poisoned[1][:, prefix - 1] = np.nan
            output, _ = run(q, *poisoned, *sees_all, np.array([0, first]))
            assert np.isnan(output).any(), prefix


def test_it_takes_the_prefixes_that_are_powers_of_two():
    assert Decode()._counts(512) == [512]
    assert Decode()._counts(7) == [7]
    assert Decode()._counts(4096) == [512, 1024, 2048, 4096]
    assert Decode()._counts(1025) == [512, 1024, 1025]


def test_no_keys_and_no_queries():
    for length_q, length_k in itertools.product((0, 2), (0, 9)):
        q, k = jnp.ones((1, length_q, 2, 4)), jnp.ones((1, length_k, 2, 4))
        mask = masks.Dense(jnp.ones((length_q, length_k), bool))
        out = dot_product_attention(q, k, k, mask=mask, implementation=Decode(4))
        assert out.shape == q.shape
        assert np.isfinite(out).all()


def test_it_is_chosen_for_a_few_queries_and_many_keys(capsys):
    q, k = jnp.zeros((1, 8, 4, 16)), jnp.zeros((1, 512, 2, 16))
    coords = {"query_coords": Coords.arange(8, 40), "key_coords": Coords.arange(512)}
    options = {"mask": masks.Causal(), **coords}
    assert explain(q, k, k, **options, platform="cpu").implementation == "decode"
    found = explain(q, k, k, **options, platform="tpu")
    assert found.implementation != "decode"
    assert found.refusals["decode"] == "it was found to be faster on cpu and cuda only."
    found = explain(q, k[:, :511], k[:, :511], platform="cpu")
    assert found.refusals["decode"] == "it is for at least 512 keys, and there are 511."
    found = explain(jnp.zeros((1, 9, 4, 16)), q, q, platform="cpu")
    assert found.refusals["decode"] == "it is for at most 8 queries, and there are 9."
    capsys.readouterr()


def test_fewest_keys_must_be_positive():
    with pytest.raises(ValueError, match="Decode: fewest_keys must be at least 1, got 0"):
        Decode(fewest_keys=0)


def test_lengths_that_are_symbolic_are_declined():
    symbolic = jax.export.symbolic_shape("s")
    (length,) = symbolic
    key = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
    query = jax.ShapeDtypeStruct((1, 1, 2, 4), jnp.float32)

    def run(q, k):
        return dot_product_attention(q, k, k, implementation="decode")

    with pytest.raises(NotImplementedError, match=r"a length is symbolic\. Use 'dense'"):
        jax.export.export(jax.jit(run))(query, key)


@pytest.mark.parametrize("dtype", ["float32", *["bfloat16"] * decode.SLICES_HALF])
def test_no_copy_of_the_keys_is_made_that_are_stored_by_head(dtype):
    """One step over a cache `[B, K, S, D]`, all of it or a part, takes far less memory than it.

    XLA reports the largest branch of a conditional, and the second computation copies. So this is
    the program without it.
    """
    size = (2, 4, 4096, 64)

    def step(query, key, value, length):
        key, value = (jnp.swapaxes(x, -3, -2) for x in (key, value))
        return dot_product_attention(
            query, key, value, mask=masks.Causal(), implementation=AsTheyAre(),
            query_coords=Coords.arange(1, length), key_coords=Coords.arange(4096),
        )  # fmt: skip

    store = jax.ShapeDtypeStruct(size, dtype)
    query = jax.ShapeDtypeStruct((2, 1, 8, 64), dtype)
    compiled = jax.jit(step).lower(query, store, store, jax.ShapeDtypeStruct((2,), "int32"))
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < np.prod(size) * jnp.dtype(dtype).itemsize / 6
