"""The softmax on rows of scores, without the attention around it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from flax_attn import Coords, Sigmoid, Softmax, attention, dot_product_attention, masks
from flax_attn.normalizers import Entmax, ReLU, TopK
from tests.oracles import attention as oracles
from tests.runs import some_by_default
from tests.small_blocks import IMPLEMENTATIONS, use_small_blocks

SCORES = jnp.array([[0.0, np.log(3.0), -jnp.inf], [-jnp.inf] * 3])[None]  # [N, T, S] = [1, 2, 3]


def test_by_hand():
    weights, lse = Softmax().normalize(SCORES)
    chex.assert_trees_all_close(weights[0], np.array([[0.25, 0.75, 0], [0, 0, 0]]))
    chex.assert_trees_all_close(lse[0], np.array([np.log(4.0), -np.inf]))
    weights, lse = Softmax(jnp.log(jnp.array([4.0]))).normalize(SCORES)
    chex.assert_trees_all_close(weights[0], np.array([[1 / 8, 3 / 8, 0], [0, 0, 0]]))
    chex.assert_trees_all_close(lse[0], np.array([np.log(8.0), np.log(4.0)]))
    weights, _ = ReLU(4).normalize(SCORES + 1)
    chex.assert_trees_all_close(weights[0], np.array([[1, 1 + np.log(3.0), 0], [0, 0, 0]]) / 4)


@pytest.mark.parametrize("sink", [None, 0.0])
def test_a_row_without_keys_has_zero_gradients(sink):
    softmax = Softmax(None if sink is None else jnp.array(sink))

    def loss(scores):
        weights, lse = softmax.normalize(scores)
        return jnp.sum(weights**2) + jnp.sum(jnp.where(jnp.isinf(lse), 0, lse))

    gradient = jax.grad(loss)(SCORES)
    chex.assert_tree_all_finite(gradient)
    assert not np.asarray(gradient[0, 1]).any()
    assert np.asarray(gradient[0, 0, :2]).all()


def test_a_single_key_has_all_the_weight_and_passes_the_gradient_of_the_lse():
    gradient = jax.grad(lambda s: jnp.sum(Softmax().normalize(s)[1]))(
        jnp.array([[[2.0, -jnp.inf]]])
    )
    chex.assert_trees_all_equal(gradient, np.array([[[1.0, 0.0]]]))


def test_a_row_may_be_folded_block_by_block():
    rows = np.random.default_rng(0).normal(size=(2, 3, 10)).astype(np.float32)
    rows[0, 0] = -np.inf

    def fold(normalizer):
        statistics = normalizer.begin((2, 3), jnp.float32)
        total = jnp.zeros((2, 3))
        for block in jnp.split(rows, (4, 5), axis=-1):
            statistics, factor, weights = normalizer.extend(statistics, block)
            total = total if factor is None else factor * total
            total += jnp.sum(weights, axis=-1)
        divisor, lse = normalizer.finish(statistics)
        finite = jnp.where(jnp.isneginf(lse), jnp.inf, lse)
        total = total if divisor is None else total / divisor
        return total, lse, normalizer.weights(rows, finite[..., None])

    for normalizer in (Softmax(), Sigmoid(), ReLU(7)):
        weights, lse = normalizer.normalize(rows)
        folded = jax.jit(fold)(normalizer)
        chex.assert_trees_all_close(folded, (weights.sum(-1), lse, weights))


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_the_entmax_solves_its_equation(alpha):
    rows = 2 * np.random.default_rng(0).normal(size=(5, 9))
    weights = np.asarray(Entmax(alpha).normalize(jnp.asarray(rows, jnp.float32))[0])
    chex.assert_trees_all_close(weights.sum(-1), 1)
    for p, s in zip(weights, (alpha - 1) * rows, strict=True):
        kept = p > 0
        tau = s[kept] - p[kept].astype(np.float64) ** (alpha - 1)
        chex.assert_trees_all_close(tau, tau.mean(), rtol=1e-7, atol=3e-6)
        assert (s[~kept] <= tau.mean() + 1e-5).all()


@pytest.mark.usefixtures("x64")
def test_the_entmax_is_differentiable_twice_and_the_masked_have_no_part():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)))
    check_grads(jax.jit(lambda s: Entmax(1.5).normalize(s)[0]), (rows,), order=2)
    masked = rows.at[:, 2].set(-jnp.inf).at[1].set(-jnp.inf)

    @jax.jit
    def run(scores):
        weights, pull = jax.vjp(lambda s: Entmax(1.5).normalize(s)[0], scores)
        return weights, *pull(jnp.broadcast_to(jnp.arange(6.0), weights.shape))

    weights, gradient = run(masked)
    assert not np.asarray(weights[:, 2]).any()
    assert not np.asarray(weights[1]).any()
    chex.assert_tree_all_finite(gradient)
    assert not np.asarray(gradient[1]).any()


def test_the_top_k_is_the_softmax_of_the_largest():
    rows = jnp.array([[3.0, 1.0, 2.0, 2.0, -jnp.inf]])
    weights, lse = TopK(2).normalize(rows)  # the second and third are equal
    e = np.exp([3.0, 2.0, 2.0])
    chex.assert_trees_all_close(weights[0], np.array([e[0], 0, e[1], e[2], 0] / e.sum()))
    chex.assert_trees_all_close(lse[0], np.log(e.sum()))
    chex.assert_trees_all_close(TopK(1).normalize(rows)[0], np.array([[1.0, 0, 0, 0, 0]]))
    chex.assert_trees_all_close(TopK(9).normalize(rows)[0], Softmax().normalize(rows)[0], rtol=1e-7)


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match=r"alpha must be above 1, got 1.0. For α = 1 use Softmax"):
        Entmax(1.0)
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got 0"):
        TopK(0)
    with pytest.raises(ValueError, match="length must be an integer of at least 1, got -1"):
        ReLU(-1)


@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_a_sink_of_minus_infinity_is_none_also_in_a_row_without_keys(
    implementation, monkeypatch, x64
):
    """Queries 0 and 1 see no key. With heads that have a sink and heads that have none."""
    length = 30
    use_small_blocks(monkeypatch, 8, 8)
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, length, 2, 4))
    sink = np.array([-np.inf, 0.3])
    seen = np.arange(length) <= np.arange(length)[:, None] - 2
    mask = masks.Window(None, -2)
    expected, expected_lse, _ = oracles.dot_product_attention(q, k, v, mask=seen, sink=sink)
    assert (expected_lse[0, 0] == [-np.inf, 0.3]).all()

    def loss(part, sink):
        output, lse = attention.finalize(part, Softmax(sink))
        return jnp.sum(output**2) + jnp.sum(jnp.where(jnp.isinf(lse), 0, lse)), (output, lse)

    def of_parts(q, k, v, sink):
        halves = [
            attention.partial(
                q,
                k[:, own],
                v[:, own],
                mask=mask,
                implementation=implementation,
                query_coords=Coords.arange(length),
                key_coords=Coords.arange(length)[own],
            )
            for own in (slice(0, 20), slice(20, length))
        ]
        return loss(attention.merge(halves), sink)

    def of_all(q, k, v, sink):
        output, lse = dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            normalizer=Softmax(sink),
            implementation=implementation,
            return_residual=True,
        )
        return jnp.sum(output**2) + jnp.sum(jnp.where(jnp.isinf(lse), 0, lse)), (output, lse)

    gradients = []
    for f in (of_all, of_parts):
        run = jax.jit(jax.grad(f, (0, 1, 2, 3), has_aux=True))
        gradient, (output, lse) = run(q, k, v, sink)
        chex.assert_trees_all_close(output, expected, rtol=1e-7, atol=1e-12)
        chex.assert_trees_all_close(lse, expected_lse, rtol=1e-7, atol=1e-12)
        assert not np.asarray(gradient[0][0, :2]).any()
        gradients.append(gradient)
    chex.assert_tree_all_finite(gradients)
    chex.assert_trees_all_close(*gradients, rtol=1e-7, atol=1e-11)
    assert gradients[0][3][0] == 0
    step = np.array([0.0, 1e-6])
    value = jax.jit(lambda *x: of_all(*x)[0])
    difference = (value(q, k, v, sink + step) - value(q, k, v, sink - step)) / 2e-6
    chex.assert_trees_all_close(gradients[0][3][1], difference)
