"""Tokens that do not fit: an error if it is known, a mark if not, and nothing written."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from flax_attn import Coords, caches, masks
from tests.tolerances import FORWARD, assert_close

B, K, D = 3, 2, 8
FULL = {
    "contiguous": lambda: caches.KVCache.create(6, K, D, batch=B),
    "int8": lambda: caches.QuantizedCache.create(6, K, D, batch=B),
    "paged": lambda: caches.PagedCache.create(6, 3, K, D, batch=B, capacity=6),
    "out of pages": lambda: caches.PagedCache.create(5, 3, K, D, batch=B, capacity=18),
}
every_full = pytest.mark.parametrize("kind", FULL)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def step(cache, x, valid):
    return cache.attend(x, x, x, Coords(jnp.arange(x.shape[1]), valid=valid), mask=masks.Causal())


jitted = jax.jit(step)
FIRST = draw(0, B, 4, K, D), np.arange(4) < np.array([[4], [4], [1]])
SECOND = draw(1, B, 4, K, D), np.arange(4) < np.array([[1], [3], [2]])  # the second does not fit


@every_full
def test_it_is_an_error_at_once(kind):
    cache = jax.jit(lambda c, x, v: step(c, x, v)[1])(FULL[kind](), *FIRST)
    before = jax.device_get(cache)
    with pytest.raises(ValueError, match=r"append: 3 tokens do not fit: .* 4 tokens") as error:
        step(cache, *SECOND)
    wanted = "free pages of 3 tokens" if kind == "out of pages" else "capacity = 6"
    assert wanted in str(error.value), error.value
    chex.assert_trees_all_equal(jax.device_get(cache), before)


@every_full
def test_under_jit_the_sequence_is_marked_and_the_others_go_on(kind):
    """Its output is NaN, its tokens are what they were, and reset makes it usable again."""
    _, first = jitted(FULL[kind](), *FIRST)
    out, cache = jitted(first, *SECOND)
    np.testing.assert_array_equal(cache.overflowed, [False, True, False])
    np.testing.assert_array_equal(cache.lengths, [5, 4, 3])
    assert np.isnan(out[1]).all()
    # The same without the tokens that do not fit.
    fitting = SECOND[1] & np.array([[True], [False], [True]])
    wanted_out, wanted = jitted(first, SECOND[0], fitting)
    assert_close(out[::2], wanted_out[::2], FORWARD["float32"])
    chex.assert_trees_all_equal(
        jax.device_get(cache), jax.device_get(wanted._replace(overflowed=cache.overflowed))
    )
    # A sequence stays marked, whatever fits later.
    out, cache = jitted(cache, SECOND[0], np.zeros_like(fitting))
    assert np.isnan(out[1]).all()
    cache = jax.jit(lambda c: c.reset(jnp.array([False, True, False])))(cache)
    assert not np.any(cache.overflowed)
    out, cache = jitted(cache, SECOND[0], SECOND[1] & np.array([[False], [True], [False]]))
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(cache.lengths, [5, 3, 3])


@every_full
def test_checkify_finds_it(kind):
    def checked_step(cache, *new):
        out, cache = step(cache, *new)
        cache.check()
        return out, cache

    checked = jax.jit(checkify.checkify(checked_step, errors=checkify.user_checks))
    error, (_, cache) = checked(FULL[kind](), *FIRST)
    error.throw()
    error, _ = checked(cache, *SECOND)
    with pytest.raises(checkify.JaxRuntimeError, match="did not fit into the cache"):
        error.throw()


def test_check_names_the_sequences_that_overflowed():
    cache = FULL["contiguous"]()
    cache.check()
    cache = cache._replace(overflowed=jnp.array([False, True, True]))
    with pytest.raises(ValueError, match=r"did not fit into the cache: those of \[1, 2\]"):
        cache.check()


def test_a_compiled_step_can_be_exported():
    exported = jax.export.export(jax.jit(step))(FULL["contiguous"](), *FIRST)
    assert not exported.ordered_effects
    assert not exported.unordered_effects


@every_full
def test_a_piece_longer_than_the_capacity(kind):
    capacity = FULL[kind]().capacity
    x, valid = draw(2, B, capacity + 1, K, D), np.ones((B, capacity + 1), bool)
    with pytest.raises(ValueError, match=rf"{capacity + 1} tokens do not fit"):
        FULL[kind]().append(x, x)
    out, cache = jitted(FULL[kind](), x, valid)
    assert np.isnan(out).all()
    assert np.all(cache.overflowed)
    chex.assert_trees_all_equal(
        jax.device_get(cache._replace(overflowed=jnp.zeros(B, bool))),
        jax.device_get(FULL[kind]()),
    )


def test_a_sequence_without_free_pages_does_not_stop_those_after_it():
    """Two pages are free: the first sequence needs three, the others one each."""
    cache = caches.PagedCache.create(2, 3, K, D, batch=B, capacity=9)
    x = draw(3, B, 9, K, D)
    _, cache = jitted(cache, x, np.arange(9) < np.array([[9], [3], [2]]))
    np.testing.assert_array_equal(cache.overflowed, [True, False, False])
    np.testing.assert_array_equal(cache.lengths, [0, 3, 2])


def rolling(window=4, num_sinks=0, spare=0, batch=1):
    return caches.RollingCache.create(window, K, D, num_sinks=num_sinks, spare=spare, batch=batch)


@functools.partial(jax.jit, static_argnums=1)
def filled(cache, length):
    x = jnp.zeros((1, length, K, D))
    return cache.append(x, x)


@pytest.mark.parametrize(
    ("options", "length", "kept", "is_lost"),
    [
        ({"spare": 2}, 20, [18], False),
        ({"spare": 2}, 20, [16], True),
        ({"spare": 2}, 20, [19, 18], False),
        ({"spare": 2}, 20, [18, 16], True),  # what the longer sequence overwrote stays lost
        ({}, 20, [18], True),
        ({"window": 1}, 20, [7], False),  # no older token is needed
        ({}, 4, [1], False),  # nothing was overwritten
        ({}, 5, [3], True),
        ({}, 20, [0], False),
        ({"num_sinks": 3}, 20, [3], False),  # sinks are never overwritten
        ({"num_sinks": 3}, 20, [2], False),
        ({"num_sinks": 3}, 20, [4], True),
        ({"num_sinks": 3, "spare": 1}, 20, [19], False),
    ],
)
def test_a_rolling_cache_takes_back_what_it_still_has(options, length, kept, is_lost):
    cache = filled(rolling(**options), length)
    traced = cache
    *before, last = kept
    for number in before:
        cache, traced = cache.truncate(number), _truncated(traced, number)
    if is_lost:
        with pytest.raises(ValueError, match=rf"truncate: {last} tokens .* a larger spare than"):
            cache.truncate(last)
    else:
        assert cache.truncate(last).lengths.tolist() == [last]
    traced = _truncated(traced, last)
    assert traced.overflowed.tolist() == [is_lost]
    assert not _truncated(traced, 0).reset().overflowed.any()


_truncated = jax.jit(lambda cache, length: cache.truncate(length))
