"""`additive_attention` against its oracle."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import additive_attention, linen, maps, nnx
from tests.oracles import attention as oracles
from tests.tolerances import FORWARD, GRADIENT, assert_close

RNG = np.random.default_rng(0)
B, T, S, DQ, DK, DV, M = 2, 3, 5, 20, 2, 4, 8
QUERY, KEY, VALUE = (RNG.normal(size=s) for s in ((B, T, DQ), (B, S, DK), (B, S, DV)))
W_QUERY, W_KEY, W_SCORE = (RNG.normal(size=s) for s in ((DQ, M), (DK, M), (M,)))
MASKS = {
    "none": None,
    "lengths": np.arange(S) < np.array([2, 5])[:, None, None],
    "an empty row": np.ones((B, T, S), bool) & (np.arange(T) != 1)[:, None],
    "keys": np.arange(S) != 3,
}


@functools.partial(jax.jit, static_argnames="dtype")
def attend(query, key, value, mask, dtype):
    weights = (W_QUERY, W_KEY, W_SCORE[:, None])
    return additive_attention(
        *(jnp.asarray(a, dtype) for a in (query, key, value)),
        *(maps.dense(jnp.asarray(w, dtype)) for w in weights),
        mask=mask,
        return_weights=True,
    )


@pytest.mark.parametrize("name", MASKS)
def test_output_and_weights_equal_the_oracle(name, x64):
    mask = MASKS[name]
    expected = oracles.additive_attention(QUERY, KEY, VALUE, W_QUERY, W_KEY, W_SCORE, mask)
    actual = attend(QUERY, KEY, VALUE, mask, jnp.float64)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, FORWARD["float64"])
    chex.assert_trees_all_equal(np.asarray(actual[1]) == 0, expected[1] == 0)


def test_low_precision_stays_so():
    expected, _ = oracles.additive_attention(QUERY, KEY, VALUE, W_QUERY, W_KEY, W_SCORE)
    output, weights = attend(QUERY, KEY, VALUE, None, jnp.bfloat16)
    chex.assert_type(output, jnp.bfloat16)
    chex.assert_type(weights, jnp.float32)
    assert_close(output, expected, 4 * FORWARD["bfloat16"])  # the projections are bfloat16 too


def test_by_hand_equal_keys_share_equally():
    output = additive_attention(
        jnp.ones((1, 2)),
        jnp.ones((3, 2)),
        jnp.array([[0.0], [3.0], [6.0]]),
        *(maps.dense(jnp.ones((2, 4))), maps.dense(jnp.ones((2, 4))), maps.dense(jnp.ones((4, 1)))),
    )
    chex.assert_trees_all_close(output, np.array([[3.0]]))


def test_nothing_behind_a_mask_leaks():
    mask = MASKS["lengths"]
    bad_key, bad_value = (np.where(mask[:, 0, :, None], a, np.nan) for a in (KEY, VALUE))

    def loss(query, key, value):
        return jnp.sum(attend(query, key, value, mask, jnp.float32)[0] ** 2)

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    expected = run(*(a.astype(np.float32) for a in (QUERY, KEY, VALUE)))
    actual = run(*(a.astype(np.float32) for a in (QUERY, bad_key, bad_value)))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(a, e, GRADIENT["float32"])


def test_the_modules_own_the_maps():
    from flax import nnx as flax_nnx

    query, key, value = (jnp.asarray(a, jnp.float32) for a in (QUERY, KEY, VALUE))
    layer = linen.AdditiveAttention(hidden_features=M)
    variables = layer.init(jax.random.key(0), query, key, value)
    output, sown = layer.apply(variables, query, key, value, mutable=["intermediates"])
    p = variables["params"]
    expected = oracles.additive_attention(
        *(np.asarray(a, np.float64) for a in (query, key, value)),
        *(np.asarray(p[name]["kernel"]) for name in ("query", "key")),
        np.asarray(p["score"]["kernel"])[:, 0],
    )
    assert_close(output, expected[0], FORWARD["float32"])
    assert_close(sown["intermediates"]["attention_weights"][0], expected[1], FORWARD["float32"])
    other = nnx.AdditiveAttention(DQ, M, in_kv_features=DK, rngs=flax_nnx.Rngs(0))
    state = flax_nnx.state(other)
    flax_nnx.replace_by_pure_dict(state, p)
    flax_nnx.update(other, state)
    assert_close(other(query, key, value), expected[0], FORWARD["float32"])
