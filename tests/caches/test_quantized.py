"""8-bit keys and values: the bound of the error, the bytes, and what has no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import caches, masks
from flax_attn.caches import Quantized
from tests.oracles.caches import rounded


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@jax.jit
def there_and_back(x):
    return Quantized.of(x).numbers(jnp.float32)


def test_an_entry_changes_by_at_most_a_254th_of_the_largest():
    x = draw(64, 16) * np.float32(10.0) ** np.arange(-30, 34)[:, None]
    x[3, :] = 0
    x[5, 1:] = 0
    x[7] = np.sign(x[7])
    found = np.asarray(there_and_back(x))
    largest = np.max(np.abs(x), axis=-1, keepdims=True)
    assert (np.abs(found - x) <= largest / 254 * (1 + 1e-5)).all()
    assert (np.abs(found - x) > largest / 300).any()
    np.testing.assert_array_equal(found[3], 0)
    np.testing.assert_allclose(found[7], x[7], rtol=1e-6)
    np.testing.assert_allclose(found, rounded(x), rtol=1e-5)


def test_a_vector_that_is_not_finite_stays_so():
    x = draw(4, 3, 16)
    for i, value in enumerate((np.nan, np.inf, -np.inf)):
        x[i, 1, 5] = value
    finite = np.isfinite(np.asarray(there_and_back(x)))
    assert not finite[:3, 1].any()
    assert finite[:, ::2].all()
    assert finite[3].all()


def test_it_takes_a_byte_a_number_and_four_a_vector():
    cache = caches.QuantizedCache.create(32, 2, 64, value_head_dim=16, batch=3)
    for store, size in ((cache.stored_keys, 64), (cache.stored_values, 16)):
        assert sum(x.nbytes for x in jax.tree.leaves(store)) == 3 * 2 * 32 * (size + 4)


def test_the_output_changes_by_no_more_than_is_stated():
    """A score by ‖q‖₁ max |k| / 254 √D, so weights by a factor, and values by max |v| / 254."""
    q, k, v = (draw(2, 24, heads, 16, seed=seed) for seed, heads in enumerate((4, 2, 2)))

    @jax.jit
    def both(q, k, v):
        return [
            kind.create(24, 2, 16, batch=2).attend(q, k, v, mask=masks.Causal())[0]
            for kind in (caches.KVCache, caches.QuantizedCache)
        ]

    exact, found = map(np.asarray, both(q, k, v))
    largest = np.abs(v).max()
    change = np.abs(q).sum(-1, keepdims=True) * np.abs(k).max() / 254 / 4
    assert (np.abs(found - exact) <= largest * (np.exp(2 * change) - 1) + largest / 254).all()
    assert np.abs(found - exact).max() > 1e-4


@pytest.mark.parametrize("wrong", ["key", "value"])
def test_rounding_has_no_derivative(wrong):
    cache = caches.QuantizedCache.create(4, 1, 8)
    x = {"query": jnp.ones((4, 1, 8)), "key": jnp.ones((4, 1, 8)), "value": jnp.ones((4, 1, 8))}

    def loss(moved, name):
        return jnp.sum(cache.attend(**(x | {name: moved}), mask=masks.Causal())[0])

    with pytest.raises(NotImplementedError, match=r"8 bits have no derivative\. Use KVCache, or"):
        jax.grad(loss)(x[wrong], wrong)
    assert np.isfinite(jax.grad(loss)(x["query"], "query")).all()


def test_it_takes_keys_of_any_precision():
    cache = caches.QuantizedCache.create(4, 1, 8, dtype=jnp.bfloat16)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        cache = cache.append(jnp.ones((1, 1, 8), dtype), jnp.ones((1, 1, 8), dtype))
    assert cache.keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(cache.keys[:3], np.float32), 1)
