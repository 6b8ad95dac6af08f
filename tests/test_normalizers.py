"""The softmax on rows of scores, without the attention around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Softmax

SCORES = jnp.array([[0.0, np.log(3.0), -jnp.inf], [-jnp.inf] * 3])[None]  # [N, T, S] = [1, 2, 3]


def test_by_hand():
    weights, lse = Softmax().normalize(SCORES)
    np.testing.assert_allclose(weights[0], [[0.25, 0.75, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(lse[0], [np.log(4.0), -np.inf], rtol=1e-6)
    weights, lse = Softmax(jnp.log(jnp.array([4.0]))).normalize(SCORES)
    np.testing.assert_allclose(weights[0], [[1 / 8, 3 / 8, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(lse[0], [np.log(8.0), np.log(4.0)], rtol=1e-6)


@pytest.mark.parametrize("sink", [None, 0.0])
def test_a_row_without_keys_has_zero_gradients(sink):
    softmax = Softmax(None if sink is None else jnp.array(sink))

    def loss(scores):
        weights, lse = softmax.normalize(scores)
        return jnp.sum(weights**2) + jnp.sum(jnp.where(jnp.isinf(lse), 0, lse))

    gradient = jax.grad(loss)(SCORES)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient[0, 1]).any()
    assert np.asarray(gradient[0, 0, :2]).all()


def test_a_single_key_has_all_the_weight_and_passes_the_gradient_of_the_lse():
    gradient = jax.grad(lambda s: jnp.sum(Softmax().normalize(s)[1]))(
        jnp.array([[[2.0, -jnp.inf]]])
    )
    np.testing.assert_array_equal(gradient, [[[1.0, 0.0]]])
