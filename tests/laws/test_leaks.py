"""What is hidden has no influence, whatever it is; what is seen and not a number shows."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, Sigmoid, Softmax, dot_product_attention, masks, scores
from flax_attn.normalizers import ReLU
from tests.runs import some_by_default
from tests.small_blocks import IMPLEMENTATIONS, use_small_blocks

B, T, N, K, D = 2, 11, 4, 2, 3
FIRST = 6  # the tokens from here on are poisoned; those before do not see them


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    use_small_blocks(monkeypatch, 4, 4, 2, 2)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


INDEX = jnp.arange(T)
EARLY = INDEX < FIRST
# The late tokens are hidden from all queries, or only from the early ones.
HIDE = {
    "padding": (None, {"valid": EARLY}),
    "columns": (masks.Dense(EARLY[None]), {}),
    "a bias": (None, {}),
    "Causal": (masks.Causal(), {}),
    "an array": (masks.Dense(INDEX[:, None] >= INDEX[None]), {}),
    "segments": (masks.SameSegment(), {"segment_ids": INDEX // FIRST}),
}


def wild(s, q, k, head_ids, *, w):
    return s + w[head_ids] * jnp.exp(s) * k.times + q.times * jnp.square(s)


MODIFIERS = {
    "none": lambda x: None,
    "a pipe": lambda x: scores.ALiBi(x["slopes"]) >> scores.SoftCap(x["cap"]),
    "a function": lambda x: scores.score_mod(wild, w=x["slopes"]),
}
NORMALIZERS = {
    "Softmax": lambda x: Softmax(x["sink"]),
    "Sigmoid": lambda x: Sigmoid(x["sink"]),
    "ReLU": lambda x: ReLU(7),
}


def arguments(dtype):
    return {
        "query": draw(B, T, N, D).astype(dtype),
        "key": draw(B, T, K, D, seed=1).astype(dtype),
        "value": draw(B, T, K, D, seed=2).astype(dtype),
        "bias": draw(1, N, T, T, seed=3),
        "scale": jnp.float32(0.3),
        "slopes": 0.1 * jnp.abs(draw(N)),
        "cap": jnp.float32(4.0),
        "sink": draw(N),
        "times": draw(B, T, seed=4),
    }


def attend(x, implementation, hide, modifier, normalizer, dropout):
    mask, fields = HIDE[hide]
    coords = Coords(INDEX, times=x["times"], **fields)
    bias = x["bias"]
    if hide == "a bias":
        bias = jnp.where(EARLY.reshape(1, 1, 1, T), bias, -jnp.inf)
    result = dot_product_attention(
        x["query"],
        x["key"],
        x["value"],
        bias,
        mask,
        scale=x["scale"],
        score_mod=MODIFIERS[modifier](x),
        normalizer=NORMALIZERS[normalizer](x),
        dropout=Dropout(0.2, jax.random.key(0)) if dropout else None,
        query_coords=coords,
        key_coords=coords,
        implementation=implementation,
        return_residual=normalizer == "Softmax",
    )
    output, lse = result if normalizer == "Softmax" else (result, jnp.zeros(result.shape[:-1]))
    return output[:, :FIRST], lse[:, :FIRST]


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def everything(x, dx, *settings):
    """What the clean rows give: value, derivative along dx, gradient."""
    result, pushed = jax.linearize(lambda x: attend(x, *settings), x)
    ct = jax.tree.map(
        lambda y: jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype), result
    )
    return result, pushed(dx), jax.linear_transpose(pushed, x)(ct)[0]


def poison(x, bad, names):
    return x | {name: x[name].at[:, FIRST:].set(bad) for name in names}


# How the late tokens are hidden, modifier, normaliser, dropout, dtype.
FROM_ALL = [
    ("padding", "a function", "Softmax", True, "float32"),
    ("padding", "a pipe", "ReLU", False, "bfloat16"),
    ("columns", "a function", "Sigmoid", False, "float32"),
    ("a bias", "none", "Softmax", True, "bfloat16"),
]
FROM_EARLY = [
    ("Causal", "a pipe", "Softmax", False, "float32"),
    ("an array", "a function", "Sigmoid", False, "float32"),
    ("segments", "none", "Softmax", True, "bfloat16"),
]


def tangents(x):
    return jax.tree.map(lambda v: draw(*v.shape, seed=9).astype(v.dtype), x)


@pytest.mark.parametrize(
    "cell", some_by_default([*FROM_ALL, *FROM_EARLY], FROM_ALL[0], FROM_EARLY[0])
)
@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_what_is_hidden_never_leaks(implementation, cell):
    *settings, dtype = cell
    x = arguments(dtype)
    expected = everything(x, tangents(x), implementation, *settings)
    chex.assert_tree_all_finite(expected)
    nobody_sees_them = cell in FROM_ALL
    together = ("query", "key", "value")
    if nobody_sees_them and cell[0] != "padding":
        together = ("key", "value")
    # What overflows where it is seen may come only where nobody sees it.
    for bad in (np.nan, np.inf, -np.inf, *((3e38, -3e38) if nobody_sees_them else ())):
        for names in (("key",), ("value",), together):
            actual = everything(poison(x, bad, names), tangents(x), implementation, *settings)
            chex.assert_trees_all_equal(actual, expected, custom_message=f"{names} {bad}")


def late_queries_see_nothing(x, implementation):
    coords = Coords(INDEX, valid=EARLY)
    return dot_product_attention(
        x["query"],
        x["key"],
        x["value"],
        x["bias"],
        normalizer=Softmax(x["sink"]),
        query_coords=coords,
        key_coords=coords,
        implementation=implementation,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tangents_and_cotangents_of_the_hidden_never_leak(implementation):
    x = arguments("float32")
    arrays = {name: x[name] for name in ("query", "key", "value")}

    @jax.jit
    def derivatives(dx, ct):
        f = lambda arrays: late_queries_see_nothing(x | arrays, implementation)
        _, pushed = jax.linearize(f, arrays)
        return pushed(dx), jax.linear_transpose(pushed, arrays)(ct)

    dx = {name: draw(*v.shape, seed=5) for name, v in arrays.items()}
    ct = draw(*x["query"].shape, seed=6)
    expected = derivatives(dx, ct)
    actual = derivatives(poison(dx, np.nan, arrays), ct.at[:, FIRST:].set(np.nan))
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.parametrize("hide", some_by_default(["padding", "columns", "nothing"], "columns"))
@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_a_row_without_keys_is_zero_and_has_no_gradient(implementation, hide):
    x = arguments("float32")
    del x["sink"]
    mask, fields = {
        "padding": (None, {"valid": (INDEX < 4) | (INDEX > 7)}),
        "columns": (masks.Dense(~((INDEX >= 4) & (INDEX < 8))[:, None]), {}),
        "nothing": (masks.Empty(), {}),
    }[hide]
    rows = slice(None) if hide == "nothing" else slice(4, 8)

    @jax.jit
    def run(x):
        def f(x):
            coords = Coords(INDEX, times=x["times"], **fields)
            mod = scores.ALiBi(x["slopes"]) >> scores.SoftCap(x["cap"])
            return dot_product_attention(
                x["query"],
                x["key"],
                x["value"],
                x["bias"],
                mask,
                scale=x["scale"],
                score_mod=mod,
                query_coords=coords,
                key_coords=coords,
                implementation=implementation,
                return_residual=True,
            )

        result, pushed = jax.linearize(f, x)
        ones = jax.tree.map(jnp.ones_like, result)
        return result, pushed(tangents(x)), jax.linear_transpose(pushed, x)(ones)[0]

    (output, lse), (d_output, d_lse), gradients = run(x)
    assert not np.asarray(output[:, rows]).any()
    assert np.isneginf(lse[:, rows]).all()
    assert np.isfinite(lse[:, :4]).all() or hide == "nothing"
    assert not np.asarray(d_output[:, rows]).any()
    assert not np.asarray(d_lse[:, rows]).any()
    assert not np.asarray(gradients["query"][:, rows]).any()
    assert not np.asarray(gradients["bias"][..., rows, :]).any()
    chex.assert_tree_all_finite(gradients)
    assert hide != "nothing" or not any(np.asarray(g).any() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("normalizer", some_by_default(["Softmax", "Sigmoid"], "Softmax"))
@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_what_is_seen_and_not_a_number_shows_in_its_rows_alone(implementation, normalizer):
    x = arguments("float32")

    @jax.jit
    def run(x):
        def loss(x):
            output = dot_product_attention(
                x["query"],
                x["key"],
                x["value"],
                mask=masks.Window(2, 0),
                normalizer=NORMALIZERS[normalizer](x),
                implementation=implementation,
            )
            return jnp.sum(output), output

        gradients, output = jax.grad(loss, has_aux=True)(x)
        return output, {name: gradients[name] for name in ("query", "key", "value")}

    for name in ("query", "key", "value"):
        for bad in (np.nan, np.inf):
            output, gradients = run(x | {name: x[name].at[0, 5, 1, 2].set(bad)})
            expected = np.zeros(output.shape, bool)
            heads = slice(1, 2) if name == "query" else slice(2, 4)
            expected[0, 5 : 6 if name == "query" else 8, heads] = True
            chex.assert_trees_all_equal(np.isnan(output), expected)
            chex.assert_tree_all_finite(gradients)
            assert not np.asarray(gradients["query"][expected]).any()
