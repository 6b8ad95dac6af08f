"""Bad input: each error has the numbers and the fix, and the cache is what it was."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, caches, masks
from flax_attn.coords import PerHead

B, T, K, D, DV = 2, 3, 2, 8, 6
KEY, VALUE = np.zeros((B, T, K, D), np.float32), np.zeros((B, T, K, DV), np.float32)
CACHE = caches.KVCache.create(
    9, K, D, batch=B, value_head_dim=DV, fields={"segment_ids": jnp.int32, "time": jnp.float32}
)
COORDS = Coords(jnp.arange(T), jnp.zeros(T, int), time=jnp.ones(T))


def append(key=KEY, value=VALUE, coords=COORDS):
    return CACHE.append(key, value, coords)


def of(**fields):
    return COORDS.with_features(**fields)


WRONG = {
    "other heads": (
        lambda: append(KEY[:, :, :1]),
        ValueError,
        r"KVCache.append: key must be \[\*B, T, K, D\] = \[2, 3, 2, 8\], as the cache was made, "
        r"got \[2, 3, 1, 8\]",
    ),
    "another head size": (
        lambda: append(value=KEY),
        ValueError,
        r"value must be \[\*B, T, K, Dv\] = \[2, 3, 2, 6\], .* got \[2, 3, 2, 8\]",
    ),
    "another batch": (lambda: append(KEY[:1]), ValueError, r"= \[2, 3, 2, 8\], .*\[1, 3, 2, 8\]"),
    "no batch": (lambda: append(KEY[0, 0]), ValueError, r"= \[2, T, 2, 8\], .*\[2, 8\]"),
    "fewer values": (lambda: append(value=VALUE[:, :1]), ValueError, r"= \[2, 3, 2, 6\]"),
    "another dtype": (
        lambda: append(jnp.zeros(KEY.shape, jnp.bfloat16)),
        ValueError,
        r"key must be float32, as the cache is, got bfloat16. Cast it, or create the cache with "
        r"dtype=bfloat16",
    ),
    "integers": (lambda: append(KEY.astype(int)), TypeError, "key must be floating point"),
    "lists": (lambda: append(KEY.tolist()), TypeError, "key must be an array, got list"),
    "no fields": (
        lambda: append(coords=Coords(jnp.arange(T))),
        ValueError,
        r"coords must have the fields of the cache, positions, segment_ids, time, got positions. "
        r"Pass them all, or name others in create\(fields=\.\.\.\)",
    ),
    "no coordinates": (lambda: append(coords=None), ValueError, "must have the fields of the"),
    "a field more": (
        lambda: append(coords=of(size=jnp.ones(T))),
        ValueError,
        "got positions, segment_ids, time, size",
    ),
    "a field of another dtype": (
        lambda: append(coords=of(time=jnp.arange(T))),
        ValueError,
        r"time of coords must be float32, as the cache's is, got int32. Cast it, or create the "
        r"cache with fields=\{'time': jnp.int32\}",
    ),
    "a feature of each head": (
        lambda: append(coords=of(time=PerHead(jnp.ones((T, 4))))),
        NotImplementedError,
        "coords must have one value per token, got PerHead 'time'",
    ),
    "coordinates of fewer tokens": (
        lambda: append(coords=COORDS[:1]),
        ValueError,
        r"KVCache.append: coords must be of the new tokens, \[\*B, T\] = \[2, 3\], got positions "
        r"\[1\]",
    ),
    "coordinates of another batch": (
        lambda: append(coords=Coords(jnp.zeros((4, T), int))),
        ValueError,
        r"= \[2, 3\], got positions \[4, 3\]",
    ),
    "an array as coordinates": (
        lambda: append(coords=jnp.arange(T)),
        TypeError,
        r"coords must be Coords, got .*\. Write Coords\(positions\)",
    ),
    "next coordinates of another length": (
        lambda: CACHE.next_coords(2, COORDS),
        ValueError,
        r"KVCache.next_coords: coords must be of the new tokens, \[\*B, T\] = \[2, 2\], got",
    ),
    "coordinates of queries": (
        lambda: CACHE.attend(KEY, KEY, VALUE, query_coords=COORDS),
        TypeError,
        r"KVCache.attend: query_coords must not be given, .* Pass coords= for the new tokens",
    ),
    "coordinates of keys": (
        lambda: CACHE.attend(KEY, KEY, VALUE, key_coords=COORDS),
        TypeError,
        "KVCache.attend: key_coords must not be given",
    ),
    "a residual": (
        lambda: CACHE.attend(KEY, KEY, VALUE, COORDS, return_residual=True),
        TypeError,
        "KVCache.attend: attention must return one array, got 2. Leave out return_residual",
    ),
    "negative lengths": (
        lambda: CACHE.truncate(jnp.array([1, -2])),
        ValueError,
        "truncate: lengths must be at least 0, got -2",
    ),
    "lengths of another batch": (
        lambda: CACHE.truncate([1, 2, 3]),
        ValueError,
        r"truncate: lengths must be one number or \[\*B\] = \[2\], got \[3\]",
    ),
    "fractions": (lambda: CACHE.truncate(1.5), TypeError, "lengths must be integers"),
    "numbers for booleans": (
        lambda: CACHE.reset(jnp.array([0, 1])),
        TypeError,
        r"reset: where must be boolean, .* got int32\. Write where.astype\(bool\)",
    ),
    "another batch to reset": (
        lambda: CACHE.reset(jnp.ones(3, bool)),
        ValueError,
        r"reset: where must be one number or \[\*B\] = \[2\], got \[3\]",
    ),
    "a mask of slots": (
        lambda: caches.RollingCache.create(4, K, D).attend(
            *[jnp.ones((1, K, D))] * 3, mask=jnp.ones((1, 1, 4), bool)
        ),
        TypeError,
        "RollingCache.attend: mask must not be an array over keys, since slots have no fixed order",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_error_has_the_numbers_and_the_fix(wrong):
    call, error, message = WRONG[wrong]
    before = jax.device_get(CACHE)
    with pytest.raises(error, match=message):
        call()
    chex.assert_trees_all_equal(jax.device_get(CACHE), before)


CREATE = {
    "KVCache": (caches.KVCache, {"capacity": 8}),
    "RollingCache": (caches.RollingCache, {"window": 8}),
    "PagedCache": (caches.PagedCache, {"num_pages": 4, "page_size": 2, "capacity": 8}),
    "QuantizedCache": (caches.QuantizedCache, {"capacity": 8}),
}


@pytest.mark.parametrize("name", CREATE)
def test_sizes_names_and_dtypes_of_create(name):
    create, sizes = CREATE[name][0].create, CREATE[name][1]
    sizes = sizes | {"num_kv_heads": 2, "head_dim": 4}
    for wrong in (*sizes, "batch"):
        with pytest.raises(ValueError, match=f"{name}.create: {wrong} must be at least 1, got 0"):
            create(**(sizes | {wrong: 0}))
    assert create(**sizes, value_head_dim=0).values.shape[-1] == 0  # for latent attention
    with pytest.raises(ValueError, match=f"{name}.create: value_head_dim must be at least 0"):
        create(**sizes, value_head_dim=-1)
    for field in ("positions", "valid", "numbers"):
        with pytest.raises(ValueError, match=f"{name}.create: fields must not contain '{field}'"):
            create(**sizes, fields={field: jnp.int32})
    with pytest.raises(ValueError, match="a feature must not be called 'head_ids'"):
        create(**sizes, fields={"head_ids": jnp.int32})
    with pytest.raises(TypeError, match=f"{name}.create: dtype must be floating point, got int32"):
        create(**sizes, dtype=jnp.int32)
    with pytest.raises(
        TypeError,
        match=rf'{name}.create: fields must map names to dtypes, such as {{"segment_ids": '
        rf"jnp.int32}}, got list\.",
    ):
        create(**sizes, fields=["segment_ids"])
    for wrong in (None, 2.5):
        message = f"{name}.create: batch must be a number or several, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match=message):
            create(**sizes, batch=wrong)
    assert create(**sizes, batch=np.int64(3)).batch == (3,)
    assert create(**sizes, batch=(2, 3)).batch == (2, 3)


@pytest.mark.parametrize("name", CREATE)
def test_every_cache_refuses_other_tokens_and_stays_as_it_is(name):
    cls, sizes = CREATE[name]
    cache = cls.create(**sizes, num_kv_heads=K, head_dim=D, batch=B).append(KEY, KEY)
    before = jax.device_get(cache)
    halves = KEY.astype(jnp.bfloat16)
    # Keys and values of 8 bits are made from any floating dtype.
    dtype = (KEY.astype(int), TypeError) if name == "QuantizedCache" else (halves, ValueError)
    for key, coords, error, message in (
        (KEY[:, :, :1], None, ValueError, r"key must be .*= \[2, 3, 2, 8\], .* \[2, 3, 1, 8\]"),
        (dtype[0], None, dtype[1], "key must be float"),
        (KEY, Coords.arange(T + 1), ValueError, r"coords must be .*= \[2, 3\], got positions \[4"),
    ):
        with pytest.raises(error, match=f"{name}.append: {message}"):
            cache.append(key, key, coords)
        chex.assert_trees_all_equal(jax.device_get(cache), before)


@pytest.mark.parametrize("name", CREATE)
def test_a_compiled_step_does_not_warn_with_64_bits_enabled(name, x64):
    cls, sizes = CREATE[name]
    cache = cls.create(**sizes, num_kv_heads=K, head_dim=D, batch=B)

    @jax.jit
    def step(cache, x):
        out, cache = cache.attend(x, x, x, mask=masks.Causal())
        cache = cache.truncate(2).reset(jnp.array([False, True]))
        return out, cache.share(0, 1) if name == "PagedCache" else cache

    out, after = step(cache, KEY)
    chex.assert_type([out, after.keys], jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, cache)
    assert after.lengths.tolist() == [2, 2 if name == "PagedCache" else 0]


def test_sizes_of_a_rolling_cache():
    for wrong in ("num_sinks", "spare"):
        with pytest.raises(ValueError, match=f"RollingCache.create: {wrong} must be at least 0"):
            caches.RollingCache.create(4, K, D, **{wrong: -1})
    with pytest.raises(ValueError, match="fields must not contain 'arrival'"):
        caches.RollingCache.create(4, K, D, fields={"arrival": jnp.int32})


def test_an_empty_piece_changes_nothing():
    for name in CREATE:
        cache = CREATE[name][0].create(**CREATE[name][1], num_kv_heads=K, head_dim=D, batch=B)
        empty = jnp.zeros((B, 0, K, D))
        out, after = cache.attend(empty, empty, empty, mask=masks.Causal())
        assert out.shape == empty.shape
        chex.assert_trees_all_equal(jax.device_get(after), jax.device_get(cache))
