"""`cache=`, `key_value=` and `return_key_value=` of multi-head attention."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, caches, masks, positions, scores
from tests import multi_head
from tests.multi_head import BASE, BEFORE, OPTIONS, WINDOW, B, D, K, M, N, T, X, in_pieces, make
from tests.oracles import multi_head as oracle
from tests.tolerances import FORWARD, assert_close

TOLERANCE = 4 * FORWARD["float32"]
SIZES = (K, D)
CACHES = {
    "contiguous": functools.partial(caches.KVCache.create, T + 3, *SIZES),
    "rolling": functools.partial(caches.RollingCache.create, WINDOW, *SIZES),
    "paged": functools.partial(caches.PagedCache.create, 12, 2, *SIZES, capacity=T + 3),
    "int8": functools.partial(caches.QuantizedCache.create, T + 3, *SIZES),
}
INT8 = 2e-2
RNG = np.random.default_rng(1)


@pytest.mark.parametrize("name", CACHES)
def test_pieces_with_each_cache_are_rows_of_the_whole_with_every_option(name):
    module = make(**OPTIONS)
    step = multi_head.compiled(module)
    tolerance = INT8 if name == "int8" else TOLERANCE
    for lengths in ((1,) * T, (4, 1, 2)):
        actual, cache = in_pieces(step, CACHES[name](batch=B), X, lengths)
        assert_close(actual, multi_head.expected(module, X), tolerance)
        assert cache.lengths.tolist() == [T] * B


def test_masks_and_modifiers_of_the_module_join_those_of_the_call():
    """The module's modifier comes first: the cap bounds the score before the slope is added."""
    slope = 0.3
    module = make(num_kv_heads=K, mask=masks.Causal(), score_mod=OPTIONS["score_mod"])
    call = {"mask": OPTIONS["mask"], "score_mod": scores.ALiBi(jnp.full(N, slope))}
    distance = np.arange(T)[:, None] - np.arange(T)
    expected = multi_head.expected(module, X, rotary_base=None, added=-slope * distance)
    step = multi_head.compiled(module, **call)
    actual, _ = in_pieces(step, CACHES["contiguous"](batch=B), X, (4, 3))
    assert_close(actual, expected, TOLERANCE)
    array = call | {"mask": BEFORE}
    assert_close(jax.jit(functools.partial(module, **array))(X), expected, TOLERANCE)


@pytest.mark.parametrize("name", ["contiguous", "paged"])
def test_packed_and_padded_sequences(name):
    """Two documents in the first row; the second row ends with two tokens of padding."""
    segments = np.array([[1, 1, 1, 1, 2, 2, 2], [3, 3, 3, 3, 3, 0, 0]])
    places = np.array([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 0, 0]])
    valid = segments > 0
    module = make(**OPTIONS | {"mask": OPTIONS["mask"] & masks.SameSegment()})

    @jax.jit
    def step(cache, x, coords):
        return module(x, cache=cache, query_coords=coords)

    coords = Coords(places, segments, valid)
    cache = CACHES[name](batch=B, fields={"segment_ids": jnp.int32})
    outputs = []
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        output, cache = step(cache, X[:, part], coords[part])
        outputs.append(output)
    same = (segments[:, None, :, None] == segments[:, None, None, :]) & valid[:, None, None]
    expected = multi_head.expected(module, X, positions=places, seen=BEFORE & same)
    actual = np.concatenate(outputs, axis=1)
    assert_close(actual[valid], expected[valid], TOLERANCE)
    assert cache.lengths.tolist() == [7, 5]
    whole = jax.jit(lambda x: module(x, query_coords=coords))(X)
    assert_close(whole[valid], expected[valid], TOLERANCE)


def test_sequences_of_different_lengths_continue_from_their_own_positions():
    module = make(**OPTIONS)
    step = multi_head.compiled(module)
    cache = CACHES["contiguous"](batch=B)
    lengths = np.array([4, 2])
    prompt = Coords(np.arange(4), valid=np.arange(4) < lengths[:, None])
    _, cache = jax.jit(lambda c, x: module(x, cache=c, query_coords=prompt))(cache, X[:, :4])
    token = np.stack([X[0, 4:5], X[1, 2:3]])
    output, cache = step(cache, token)
    expected = multi_head.expected(module, X)
    assert_close(output[:, 0], np.stack([expected[0, 4], expected[1, 2]]), TOLERANCE)
    assert cache.lengths.tolist() == [5, 3]


def test_a_layer_reads_keys_and_values_of_another():
    """In training, and in decoding from the other layer's cache."""
    first = make(**OPTIONS)
    second = make(1, **OPTIONS, shares_key_value=True)
    names = set(multi_head.parameters_of(second))
    assert names == {"query", "query_ln", "out", "gate", "sink"}
    parameters = jax.device_get(multi_head.parameters_of(first))
    settings = {"rotary_base": BASE, "soft_cap": multi_head.SOFT_CAP, "seen": BEFORE}
    hidden, *key_value = oracle.multi_head_attention(parameters, X, **settings)
    expected = multi_head.expected(second, hidden, key_value=key_value)

    @jax.jit
    def whole(x):
        hidden, key_value = first(x, return_key_value=True)
        return second(hidden, key_value=key_value), key_value

    actual, found = whole(X)
    assert_close(actual, expected, 2 * TOLERANCE)
    chex.assert_trees_all_close(found, tuple(map(np.float32, key_value)), atol=1e-5)

    def step(cache, x):
        coords = cache.next_coords(x.shape[-2])
        hidden, cache = first(x, cache=cache)
        key_value = cache.keys, cache.values
        places = {"query_coords": coords, "key_coords": cache.coords}
        return second(hidden, key_value=key_value, **places), cache

    actual, _ = in_pieces(jax.jit(step), CACHES["paged"](batch=B), X, (3, 1, 3))
    assert_close(actual, expected, 2 * TOLERANCE)


def test_cross_attention_to_keys_and_values_made_once():
    """The encoder's keys and values are projected once, and read at every step."""
    module = make(num_kv_heads=K)
    memory = RNG.normal(size=(B, 5, M)).astype(np.float32)
    whole, key_value = jax.jit(functools.partial(module, return_key_value=True))(X, memory)
    parameters = jax.device_get(multi_head.parameters_of(module))
    expected, *_ = oracle.multi_head_attention(parameters, X, memory)
    assert_close(whole, expected, TOLERANCE)
    step = jax.jit(lambda x, kv: module(x, key_value=kv))
    chex.assert_shape(key_value, (B, 5, K, D))
    rows = [step(X[:, t : t + 1], key_value) for t in range(T)]
    assert_close(np.concatenate(rows, axis=1), expected, TOLERANCE)


def test_a_cache_and_the_new_keys_and_values_are_returned_together():
    module = make(num_kv_heads=K)
    cache = CACHES["contiguous"](batch=B)
    _, cache, key_value = jax.jit(functools.partial(module, return_key_value=True))(X, cache=cache)
    chex.assert_trees_all_equal(key_value, (cache.keys[:, :T], cache.values[:, :T]))


def test_steps_with_a_cache_are_traced_once():
    module, traced = make(**OPTIONS), []

    @jax.jit
    def step(cache, x):
        traced.append(x.shape)
        return module(x, cache=cache)

    in_pieces(step, CACHES["contiguous"](batch=B), X, (2, 2, 1, 1, 1))
    assert traced == [(B, 2, M), (B, 1, M)]


def heads(*shape):
    return jnp.ones(shape)


REFUSED = {
    "other keys": (
        lambda: {"inputs_k": X[:, :3]},
        r"cache and input_positions are for self-attention.*got T = 7 and S = 3",
    ),
    "coordinates of keys": (
        lambda: {"key_coords": Coords.arange(T)},
        "key_coords must not be given with a cache",
    ),
    "keys and values": (
        lambda: {"key_value": (heads(B, T, K, D),) * 2},
        "key_value must not be given with a cache",
    ),
    "other heads": (
        lambda: {"cache": caches.KVCache.create(T, N, D, batch=B)},
        r"key must be \[\*B, T, K, D\] = \[2, 7, 4, 6\].*got \[2, 7, 2, 6\]",
    ),
    "another dtype": (
        lambda: {"cache": caches.KVCache.create(T, K, D, batch=B, dtype=jnp.bfloat16)},
        r"key must be bfloat16, as the cache is, got float32\. Cast it",
    ),
    "another batch": (
        lambda: {"cache": caches.KVCache.create(T, K, D, batch=3)},
        r"inputs_q must have the batch axes of the cache, \*B = \[3\], got \[2, 7, 24\]",
    ),
    "too many tokens": (
        lambda: {"cache": caches.KVCache.create(4, K, D, batch=B)},
        r"7 tokens do not fit: the cache holds 0 tokens of at most capacity = 4",
    ),
    "positions of other tokens": (
        lambda: {"query_coords": Coords.arange(3)},
        r"coords must be of the new tokens, \[\*B, T\] = \[2, 7\], got positions \[3\]",
    ),
    "rotary positions of other tokens": (
        lambda: {"input_positions": np.arange(3)},
        r"positions must broadcast to \[\*B, T\] = \[2, 7\], with all T, got \[3\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_a_cache_is_refused(name):
    call, message = REFUSED[name]
    module = make(num_kv_heads=K, rotary=positions.Rotary(D))
    cache = CACHES["contiguous"](batch=B)
    with pytest.raises(ValueError, match=message):
        module(X, **{"cache": cache} | call())
    assert cache.lengths.tolist() == [0] * B


def test_what_is_no_cache_and_no_pair_is_refused():
    module = make()
    result = module(X, cache=caches.KVCache.create(T, N, D, batch=B))
    with pytest.raises(TypeError, match=r"cache must be a cache of .*, got tuple\. A call with a"):
        module(X, cache=result)
    with pytest.raises(TypeError, match=r"key_value must be a pair of keys .*\(cache.keys, cache"):
        module(X, key_value=result[1])
    with pytest.raises(TypeError, match=r"key_value must be a pair"):
        module(X, key_value=jnp.ones((2, B, T, N, D)))


def test_keys_and_values_have_one_source():
    pair = (heads(B, T, N, D),) * 2
    for name in ("inputs_k", "inputs_kv"):
        with pytest.raises(ValueError, match=f"{name} must not be given with key_value"):
            make()(X, key_value=pair, **{name: X})
    message = r"key_value must be given with shares_key_value=True, as the module has no projec"
    with pytest.raises(ValueError, match=message):
        make(shares_key_value=True)(X)


def test_a_rotation_that_depends_on_the_length_so_far_is_refused():
    """Keys in a cache are rotated already, so the length of the whole generation must be given."""
    scaling = positions.DynamicNTK(2.0, 16)
    cache = CACHES["contiguous"](batch=B)
    with pytest.raises(ValueError, match=r"rotary must not depend on the length so far"):
        make(rotary=positions.Rotary(D, scaling=scaling))(X, cache=cache)
    module = make(num_kv_heads=K, rotary=positions.Rotary(D, scaling=scaling, length=40))
    expected = module(X, is_causal=True)
    step = jax.jit(lambda cache, x: module(x, cache=cache, is_causal=True))
    actual, _ = in_pieces(step, cache, X, (3, 1, 3))
    assert_close(actual, expected, TOLERANCE)
