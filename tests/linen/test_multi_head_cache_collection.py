"""Flax's idiom of decoding in Linen: `decode=True` and the collection `cache`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen

from flax_attn import Coords, caches, linen
from tests import multi_head
from tests.multi_head import OPTIONS, B, K, M, N, T, X, in_pieces
from tests.tolerances import FORWARD, assert_close

TOLERANCE = 4 * FORWARD["float32"]
FLAX = flax_linen.MultiHeadDotProductAttention


def cache_of(layer, x=X):
    """The empty cache, from inputs of the full length."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes["cache"])


def step_of(layer, parameters, **call):
    """`step(cache, x) -> (output, cache)`."""

    def step(cache, x):
        variables = {"params": parameters, "cache": cache}
        output, changed = layer.apply(variables, x, mutable=["cache"], **call)
        return output, changed["cache"]

    return jax.jit(step)


def test_init_makes_the_cache_of_flax_and_steps_fill_it_alike():
    theirs = FLAX(num_heads=N, decode=True, normalize_qk=True)
    ours = linen.MultiHeadAttention(num_heads=N, decode=True, normalize_qk=True)
    variables = jax.jit(theirs.init)(jax.random.key(0), X)
    chex.assert_trees_all_equal(jax.jit(ours.init)(jax.random.key(0), X), variables)
    results = [
        in_pieces(step_of(layer, variables["params"]), variables["cache"], X, (1,) * T)
        for layer in (ours, theirs)
    ]
    assert_close(results[0][0], results[1][0], TOLERANCE)
    chex.assert_trees_all_close(results[0][1], results[1][1], atol=1e-5)


def test_a_scan_over_steps_equals_the_whole_with_every_option():
    module = multi_head.make(**OPTIONS)
    parameters = multi_head.parameters_of(module)
    layer = linen.MultiHeadAttention(num_heads=N, decode=True, **OPTIONS)
    expected = multi_head.expected(module, X)

    class Steps(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, xs):
            def body(layer, carry, x):
                return carry, layer(x)

            scan = flax_linen.scan(
                body, variable_carry="cache", variable_broadcast="params", in_axes=1, out_axes=1
            )
            return scan(layer.copy(name="layer"), None, xs)[1]

    variables = {"params": {"layer": parameters}, "cache": {"layer": cache_of(layer)}}
    run = jax.jit(functools.partial(Steps().apply, mutable=["cache"]))
    outputs, changed = run(variables, X[:, :, None])
    assert_close(outputs[:, :, 0], expected, TOLERANCE)
    chex.assert_trees_all_equal_shapes_and_dtypes(changed["cache"], variables["cache"])
    assert changed["cache"]["layer"]["cache_index"] == T
    pieces, _ = in_pieces(step_of(layer, parameters), cache_of(layer), X, (4, 1, 2))
    assert_close(pieces, expected, TOLERANCE)


def test_several_batch_axes_and_a_mask_of_flaxs_shape():
    x = np.random.default_rng(1).normal(size=(2, 3, 4, M)).astype(np.float32)
    mask = np.array([1, 0, 1, 1], bool)[None, None, None, None]
    theirs, ours = (cls(num_heads=N, decode=True) for cls in (FLAX, linen.MultiHeadAttention))
    variables = jax.jit(theirs.init)(jax.random.key(0), x)
    results = [
        in_pieces(step_of(layer, variables["params"], mask=mask), cache_of(ours, x), x, (1,) * 4)
        for layer in (ours, theirs)
    ]
    chex.assert_trees_all_close(results[0], results[1], atol=1e-5)


def test_remat_and_two_layers():
    class Model(flax_linen.Module):
        decode: bool

        @flax_linen.compact
        def __call__(self, x):
            for _ in range(2):
                layer = flax_linen.remat(linen.MultiHeadAttention)
                x = x + layer(num_heads=N, decode=self.decode, **OPTIONS)(x)
            return x

    model = Model(decode=True)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    parameters = variables["params"]
    actual, _ = in_pieces(step_of(model, parameters), variables["cache"], X, (5, 1, 1))
    whole = jax.jit(Model(decode=False).apply)({"params": parameters}, X)
    assert_close(actual, whole, TOLERANCE)


def test_cache_at_the_call_gives_what_nnx_gives():
    module = multi_head.make(**OPTIONS)
    layer = linen.MultiHeadAttention(num_heads=N, **OPTIONS)
    variables = {"params": multi_head.parameters_of(module)}
    cache = caches.KVCache.create(T, K, module.head_dim, batch=B)
    of_linen = jax.jit(lambda c, x: layer.apply(variables, x, cache=c, return_key_value=True))
    of_nnx = jax.jit(lambda c, x: module(x, cache=c, return_key_value=True))
    chex.assert_trees_all_close(of_linen(cache, X), of_nnx(cache, X), atol=1e-5)


def test_overflow_is_an_error_or_nan():
    layer = linen.MultiHeadAttention(num_heads=N, decode=True)
    parameters = jax.jit(layer.init)(jax.random.key(0), X)["params"]
    cache = cache_of(layer, X[:, :3])
    _, later = in_pieces(step_of(layer, parameters), cache, X, (2,))
    variables = {"params": parameters, "cache": later}
    with pytest.raises(
        ValueError, match=r"tokens do not fit: the cache holds 2 tokens of at most 3"
    ):
        layer.apply(variables, X[:, :2], mutable=["cache"])
    output, later = step_of(layer, parameters)(later, X[:, :2])
    assert np.isnan(output).all()
    output, _ = step_of(layer, parameters)(later, X[:, :1])
    assert np.isnan(output).all()


def test_a_collection_that_cannot_change_is_refused():
    layer = linen.MultiHeadAttention(num_heads=N, decode=True)
    variables = jax.jit(layer.init)(jax.random.key(0), X)
    for given in (variables, {"params": variables["params"]}):
        with pytest.raises(ValueError, match=r"the collection 'cache' must be mutable with decode"):
            layer.apply(given, X[:, :1])
    with pytest.raises(ValueError, match="query_coords must not be given with decode=True"):
        layer.apply(variables, X[:, :1], query_coords=Coords.arange(1), mutable=["cache"])
