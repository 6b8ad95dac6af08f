"""Flax's idiom of decoding: `decode=True`, `init_cache`, and variables of the type `nnx.Cache`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from flax_attn import Coords, caches, nnx, positions
from tests import multi_head
from tests.multi_head import OPTIONS, B, D, K, M, N, T, X, in_pieces, make
from tests.tolerances import FORWARD, assert_close

TOLERANCE = 4 * FORWARD["float32"]
TOKEN_BY_TOKEN = (1,) * T
CAUSAL = np.tril(np.ones((T, T), bool))


@flax_nnx.jit
def step(module, x, mask=None):
    return module(x, mask=mask), module


def with_cache(module, batch=(B,), length=T, dtype=jnp.float32):
    module.init_cache((*batch, length, M), dtype)
    module.set_attributes(decode=True)
    return module


def stored(module):
    return flax_nnx.to_pure_dict(flax_nnx.state(module, flax_nnx.Cache))


def theirs_and_ours(**options):
    """Flax's module and ours with the same parameters."""
    options = {"bias_init": flax_nnx.initializers.normal(), **options}
    for cls in (flax_nnx.MultiHeadAttention, nnx.MultiHeadAttention):
        yield cls(N, M, **options, decode=True, rngs=flax_nnx.Rngs(0))


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": K, "normalize_qk": True}])
def test_tokens_one_by_one_equal_flax_and_the_causal_pass(options):
    theirs, ours = theirs_and_ours(**options)
    whole = jax.jit(lambda x: ours(x, is_causal=True, decode=False))(X)
    for module in (theirs, ours):
        module.init_cache((B, T, M))
    chex.assert_trees_all_equal_shapes_and_dtypes(stored(theirs), stored(ours))
    expected, theirs = in_pieces(step, theirs, X, TOKEN_BY_TOKEN)
    actual, ours = in_pieces(step, ours, X, TOKEN_BY_TOKEN)
    assert_close(actual, expected, TOLERANCE)
    assert_close(actual, whole, TOLERANCE)
    chex.assert_trees_all_close(stored(ours), stored(theirs), atol=1e-5)
    assert stored(ours)["cache_index"] == T


def test_pieces_of_any_length_are_rows_of_the_whole_with_every_option():
    """Rotary positions are right here; those of Flax's function restart at 0 in each call."""
    module = make(**OPTIONS)
    expected = multi_head.expected(module, X)
    for lengths in (TOKEN_BY_TOKEN, (3, 1, 2, 1), (T,)):
        actual, _ = in_pieces(step, with_cache(module, length=T + 2), X, lengths)
        assert_close(actual, expected, TOLERANCE)


def test_a_mask_of_flaxs_shape_hides_stored_keys():
    mask = np.array([[1, 0, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0, 1]], bool)[:, None, None]
    theirs, ours = theirs_and_ours()
    expected = jax.jit(lambda x: theirs(x, mask=CAUSAL & mask, decode=False))(X)
    for module in (theirs, ours):
        module.init_cache((B, T, M))
        actual, _ = in_pieces(lambda m, x: step(m, x, mask), module, X, TOKEN_BY_TOKEN)
        assert_close(actual, expected, TOLERANCE)


def test_is_causal_attends_to_all_stored_keys():
    """As in google/flax#5591."""
    module = with_cache(make())
    expected, _ = in_pieces(step, module, X, TOKEN_BY_TOKEN)
    causal = flax_nnx.jit(lambda m, x: (m(x, is_causal=True), m))
    actual, _ = in_pieces(causal, with_cache(module), X, TOKEN_BY_TOKEN)
    chex.assert_trees_all_equal(actual, expected)


def test_positions_of_rotary_may_be_given():
    rotary = positions.Rotary(D)
    places = np.array([3, 4, 5, 0, 1, 2, 3])
    module = make(rotary=rotary)
    whole = jax.jit(lambda x: module(x, is_causal=True, input_positions=places))(X)
    placed = flax_nnx.jit(lambda m, x, p: (m(x, input_positions=p), m))
    module = with_cache(module)
    for t in range(T):
        output, module = placed(module, X[:, t : t + 1], places[t : t + 1])
        assert_close(output[:, 0], whole[:, t], TOLERANCE)


def test_dropout_is_that_of_the_whole():
    module = make(dropout_rate=0.4, deterministic=False, broadcast_dropout=False)

    def whole(module, x):
        return module(x, rngs=flax_nnx.Rngs(dropout=1), is_causal=True)

    expected = flax_nnx.jit(whole)(module, X)
    dropped = flax_nnx.jit(lambda m, x: (m(x, rngs=flax_nnx.Rngs(dropout=1)), m))
    actual, _ = in_pieces(dropped, with_cache(module), X, (4, 2, 1))
    assert_close(actual, expected, TOLERANCE)


def test_a_view_makes_the_cache():
    module = make(dtype=jnp.bfloat16)
    view = flax_nnx.view(module, decode=True, batch_size=B, max_length=T)
    assert module.cached_key is None
    chex.assert_shape(view.cached_key[...], (B, T, N, D))
    chex.assert_type([view.cached_key[...], view.cached_value[...]], jnp.bfloat16)
    output, view = step(view, X[:, :1])
    chex.assert_type(output, jnp.bfloat16)
    assert view.cache_index[...] == 1
    again = flax_nnx.view(view, batch_size=(2, 3), max_length=5)
    chex.assert_shape(again.cached_key[...], (2, 3, 5, N, D))
    for sizes in ({"batch_size": 2}, {"max_length": 5}):
        with pytest.raises(ValueError, match="batch_size and max_length make a cache together"):
            flax_nnx.view(module, decode=True, **sizes)


def test_steps_of_one_shape_are_traced_once():
    traced = []

    @flax_nnx.jit
    def step(module, x):
        traced.append(x.shape)
        return module(x), module

    in_pieces(step, with_cache(make(**OPTIONS)), X, (2, 2, 1, 1, 1))
    assert traced == [(B, 2, M), (B, 1, M)]


class Layers(flax_nnx.Module):
    """Two layers with a residual connection."""

    def __init__(self):
        self.layers = flax_nnx.List([make(seed, **OPTIONS) for seed in range(2)])

    def __call__(self, x, **call):
        for layer in self.layers:
            x = x + layer(x, **call)
        return x


def test_layers_decode_inside_scan():
    model = Layers()
    expected = jax.jit(lambda x: model(x, decode=False))(X)
    view = flax_nnx.view(model, decode=True, batch_size=B, max_length=T)
    graph, cache, rest = flax_nnx.split(view, flax_nnx.Cache, ...)

    @jax.jit
    def decode(cache, xs):
        def body(cache, x):
            model = flax_nnx.merge(graph, cache, rest)
            output = model(x[:, None])[:, 0]
            return flax_nnx.state(model, flax_nnx.Cache), output

        return jax.lax.scan(body, cache, xs)

    cache, outputs = decode(cache, jnp.swapaxes(X, 0, 1))
    assert_close(jnp.swapaxes(outputs, 0, 1), expected, TOLERANCE)


def test_several_batch_axes():
    x = np.random.default_rng(1).normal(size=(2, 3, 4, M)).astype(np.float32)
    module = make(**OPTIONS)
    actual, _ = in_pieces(step, with_cache(module, (2, 3), 4), x, (3, 1))
    seen = multi_head.BEFORE[:4, :4]
    expected = [multi_head.expected(module, x[i], seen=seen) for i in range(2)]
    assert_close(actual, np.stack(expected), TOLERANCE)


def test_tokens_that_do_not_fit_are_an_error_and_change_nothing():
    module = with_cache(make(), length=3)
    module(X[:, :2])
    before = jax.device_get(stored(module))
    message = (
        r"tokens do not fit: the cache holds 2 tokens of at most 3\. Make it for longer inputs"
    )
    with pytest.raises(ValueError, match=message):
        module(X[:, :2])
    chex.assert_trees_all_equal(stored(module), before)


def test_a_cache_of_no_tokens_is_refused():
    module = make()
    for shape in ((2, 0, M), (M,)):
        message = r"MultiHeadAttention.init_cache: input_shape must be \[\*B, S, M\] with sizes of"
        with pytest.raises(ValueError, match=message):
            module.init_cache(shape)


def test_under_jit_an_overflow_gives_nan_from_then_on():
    module = with_cache(make(), length=3)
    outputs = []
    for length in (2, 2, 1, 1):  # after two tokens, one would fit
        output, module = step(module, X[:, :length])
        outputs.append(np.isnan(output).mean())
    assert outputs == [0, 1, 1, 1]
    assert module.cache_index[...] == 6
    with pytest.raises(ValueError, match="the cache holds 6 tokens of at most 3"):
        module(X[:, :1])


def test_decode_is_an_attribute_as_in_flax():
    module = make()
    assert module.decode is None
    expected = module(X)
    with pytest.raises(ValueError, match=r"decode=True needs a cache, and there is none\. Call"):
        module(X[:, :1], decode=True)
    module = with_cache(module)
    assert module.decode is True
    chex.assert_trees_all_equal(module(X, decode=False), expected)
    assert module.cache_index[...] == 0


def pair():
    return (jnp.ones((B, T, N, D)),) * 2


REFUSED = {
    "cache": (lambda: {"cache": caches.KVCache.create(T, N, D, batch=B)}, "cache must not be"),
    "key_value": (lambda: {"key_value": pair()}, "key_value must not be given with decode=True"),
    "return_key_value": (lambda: {"return_key_value": True}, "return_key_value must not be given"),
    "query_coords": (lambda: {"query_coords": Coords.arange(T)}, "query_coords must not be given"),
    "key_coords": (lambda: {"key_coords": Coords.arange(T)}, "key_coords must not be given"),
    "other keys": (lambda: {"inputs_k": X[:, :3]}, r"got T = 7 and S = 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_flaxs_variables_cannot_hold_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        with_cache(make())(X, **call())


def test_a_cache_of_another_batch_or_dtype_is_refused():
    with pytest.raises(ValueError, match=r"the batch axes of the cache, \*B = \[3\], got \[2, 1"):
        with_cache(make(rotary=positions.Rotary(D)), (3,))(X[:, :1])
    message = (
        r"MultiHeadAttention: key must be bfloat16, as the cache is, got float32\. Make the cache "
        r"with that dtype: init_cache\(input_shape, dtype=float32\) in NNX"
    )
    with pytest.raises(ValueError, match=message):
        with_cache(make(), dtype=jnp.bfloat16)(X[:, :1])
    shared = with_cache(make(shares_key_value=True))
    with pytest.raises(ValueError, match="shares_key_value must not be given with decode=True"):
        shared(X[:, :1])
