"""Parameters that carry arrays over batch, heads, queries or keys: cut like the scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import dot_product_attention, masks, scores
from flax_attn.coords import Aligned
from tests.oracles import attention as oracles
from tests.runs import some_by_default
from tests.small_blocks import IMPLEMENTATIONS, use_small_blocks
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, L, N, K, D, R = 2, 80, 4, 2, 4, 7
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    use_small_blocks(monkeypatch, 32, 32)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


Q, KEY, V = draw(B, L, N, D), draw(B, L, K, D, seed=1), draw(B, L, K, D, seed=2)
PRODUCTS = np.einsum("btnd,bsnd->bnts", Q, np.repeat(KEY, N // K, axis=2)) / 2
# Axes, shape, and how the function makes pairs of its part.
TABLES = {
    "batch elements": ("bn", (B, 1), (..., None, None)),
    "heads alone": ("n", (N,), (..., None, None)),
    "queries": ("bnt", (B, 1, L), (..., None)),
    "queries alone": ("t", (L,), (..., None)),
    "keys": ("bns", (B, N, L), (..., None, slice(None))),
    "pairs alone": ("ts", (L, L), ...),
    "pairs of all heads": ("bts", (B, L, L), ...),
}


def of_pairs(name, table):
    """The whole table `[B | 1, N | 1, T | 1, S | 1]`."""
    axes, _, _ = TABLES[name]
    return table.reshape([table.shape[axes.index(a)] if a in axes else 1 for a in "bnts"])


@every_implementation
@pytest.mark.parametrize(
    "name", some_by_default(TABLES, "heads alone", "queries", "keys", "pairs alone")
)
def test_a_table_over_some_axes(name, implementation, x64):
    axes, shape, pairs = TABLES[name]
    table = draw(*shape, seed=3)

    def scale(s, q, k, head_ids, *, table):
        return s * table.values[pairs]

    def attend(table, q, k, v):
        mod = scores.score_mod(scale, table=Aligned(table, axes))
        return dot_product_attention(q, k, v, score_mod=mod, implementation=implementation)

    def formula(table, products, v):
        weights = jax.nn.softmax(products * of_pairs(name, table))
        return jnp.einsum("bnts,bsnd->btnd", weights, v)

    def value_and_gradient(f, *arrays):
        def loss(*x):
            output = f(*x)
            return jnp.sum(jnp.sin(output)), output

        (_, output), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(table, *arrays)
        return output, gradient

    output, gradient = value_and_gradient(attend, Q, KEY, V)
    expected, _ = oracles.attend(PRODUCTS * of_pairs(name, table), V, True)
    same, wanted = value_and_gradient(formula, PRODUCTS, np.repeat(V, N // K, axis=2))
    assert_close(output, expected, FORWARD["float64"])
    assert_close(same, expected, FORWARD["float64"])
    assert_close(gradient, wanted, GRADIENT["float64"])


@every_implementation
def test_the_position_term_of_transformer_xl(implementation, x64):
    """(q_i + v) · r_ij / √D, computed for R distances and looked up."""
    r, v_bias = draw(R, N, D, seed=4), draw(1, 1, N, D, seed=5)

    def position_term(s, q, k, head_ids, *, table):
        row = jnp.clip(q.positions - k.positions, 0, R - 1)
        return s + jnp.take_along_axis(table.values, row, axis=-1)

    def attend(q, r):
        table = jnp.einsum("btnd,rnd->bntr", q + v_bias, r) / 2
        mod = scores.score_mod(position_term, table=Aligned(table, "bntr"))
        return dot_product_attention(
            q, KEY, V, mask=masks.Causal(), score_mod=mod, implementation=implementation
        )

    back = np.arange(L)[:, None] - np.arange(L)
    vectors = r[np.clip(back, 0, R - 1)]  # [T, S, N, D]
    term = np.einsum("btnd,tsnd->bnts", Q + v_bias, vectors) / 2
    expected, _ = oracles.attend(PRODUCTS + term, V, back >= 0)
    assert_close(jax.jit(attend)(Q, r), expected, FORWARD["float64"])


@every_implementation
def test_a_relation_takes_them_too(implementation, x64):
    limits = np.random.default_rng(0).integers(1, L, (B, 1))

    @masks.relation
    def first(q, k, *, limit):
        return k.positions < limit.values[..., None, None]

    actual = dot_product_attention(
        *map(jnp.asarray, (Q, KEY, V)),
        mask=first(limit=Aligned(jnp.asarray(limits, jnp.int32), "bn")),
        implementation=implementation,
    )
    expected, _ = oracles.attend(PRODUCTS, V, np.arange(L) < limits[:, :, None, None])
    assert_close(actual, expected, FORWARD["float64"])


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ("tn", (L, N), "the axes 'tn' .* must be different letters, b and n first"),
        ("nb", (N, B), "b and n first"),
        ("bntt", (B, N, L, L), "different letters"),
        (
            "bnt",
            (B, N, L - 1),
            r"must broadcast to \[\*B, N, T\] = \[2, 4, 80\], got \[2, 4, 79\]",
        ),
        ("bn", (B, 3), r"must broadcast to \[\*B, N\] = \[2, 4\], got \[2, 3\]"),
        ("bnr", (3, N, R), r"must broadcast to \[\*B, N, R\] = \[2, 4, 7\], got \[3, 4, 7\]"),
        ("bn", (B, B, N), "more than the 1 batch axes"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, shape, message):
    mod = scores.score_mod(lambda s, q, k, h, *, table: s, table=Aligned(jnp.ones(shape), axes))
    attend = functools.partial(dot_product_attention, score_mod=mod)
    with pytest.raises(ValueError, match=message):
        attend(*(x.astype(np.float32) for x in (Q, KEY, V)))
