"""Mechanisms in which every place (or channel) attends to every other: their claims and traps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from flax_attn import linen, maps, nnx, vision
from tests.mechanisms import (
    linen_module,
    load,
    maps_of,
    merged,
    module_class,
    nnx_module,
    random_variables,
)
from tests.oracles import vision as oracles
from tests.oracles.vision.global_mixers import criss_cross_step
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(0.3, 1.5, (2, 6, 5, 32)).astype(np.float32)
WIDE = np.asarray(X, np.float64)

MIXERS = (
    "non_local",
    "position_attention",
    "channel_affinity_attention",
    "criss_cross_attention",
    "external_attention",
    "double_attention",
)
ON_REQUEST = ("non_local", "position_attention", "criss_cross_attention")

every_mixer = pytest.mark.parametrize("name", MIXERS)


def dense(inputs, outputs, seed=1):
    kernel = np.random.default_rng(seed).normal(size=(inputs, outputs)) / np.sqrt(inputs)
    return maps.dense(jnp.asarray(kernel, jnp.float32))


def identity(x):
    return x


def call(function, x, *given, **bound):
    """What a function makes of an image, in one program."""
    return jax.jit(lambda x: function(x, *given, **bound))(x)


def weights_of(name, x):
    """What the function returns beside its output."""
    bound = maps_of(name, random_variables(name, x.shape[-1], dtype=np.float32))
    return call(getattr(vision, name), x, **bound, return_weights=True)[1]


# Claims


@pytest.mark.parametrize("name", ["non_local", "position_attention", "channel_affinity_attention"])
def test_rows_of_weights_sum_to_one(name):
    chex.assert_trees_all_close(np.sum(weights_of(name, X), axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["non_local", "position_attention", "channel_affinity_attention", "criss_cross_attention"],
)
def test_a_module_as_made_is_the_identity(name):
    phase = {"use_running_average": True} if name == "non_local" else {}
    module = module_class(linen, name)(**phase)
    y, _ = jax.jit(module.init_with_output)(jax.random.key(0), X)
    made = nnx_module(name, 32)
    made.eval()
    chex.assert_trees_all_equal(y, jax.jit(made)(X), X)


def test_channel_affinity_attention_has_one_parameter():
    assert jax.tree.map(np.shape, random_variables("channel_affinity_attention", 32)) == {
        "params": {"gamma": ()}
    }


def test_channels_attend_to_the_channels_that_are_unlike_them():
    # Channels (3, 4), (−3, −4), (0, 0): energies 25, −25, 0 in the first row.
    x = np.array([[[[0.3, -0.3, 0.0], [0.4, -0.4, 0.0]]]], np.float32)
    y, weights = call(vision.channel_affinity_attention, x, jnp.array(1.0), return_weights=True)
    row = np.exp([-0.25, 0.25, 0.0])
    row /= row.sum()
    chex.assert_trees_all_close(weights[0, 0], row)
    chex.assert_trees_all_close(y[0, 0, 0, 0], 0.3 + 0.3 * (row[0] - row[1]), rtol=1e-5)


def test_large_channels_do_not_overflow():
    x = np.full((1, 64, 64, 4), 60.0, np.float16)  # energies of 1.5e7
    y = call(vision.channel_affinity_attention, x, jnp.array(1.0))
    assert_close(y, np.full(x.shape, 120.0), FORWARD["float16"])


@pytest.mark.parametrize("recurrence", [1, 2])
def test_one_step_reaches_the_cross_and_two_steps_every_place(recurrence):
    query, key, value = dense(32, 4, 1), dense(32, 4, 2), dense(32, 32, 3)

    def at_a_place(x):
        y = vision.criss_cross_attention(
            x, query, key, value, jnp.array(1.0), recurrence=recurrence
        )
        return jnp.sum(y[:, 2, 3])

    reached = np.abs(jax.jit(jax.grad(at_a_place))(X)).max(axis=(0, 3)) > 0
    cross = np.zeros((6, 5), bool)
    cross[2], cross[:, 3] = True, True
    chex.assert_trees_all_equal(reached, cross if recurrence == 1 else np.ones((6, 5), bool))


def test_criss_cross_weights_count_the_own_place_once():
    first, second = weights_of("criss_cross_attention", X)
    for weights in (np.asarray(first), np.asarray(second)):
        chex.assert_shape(weights, (2, 6, 5, 11))
        chex.assert_trees_all_close(np.sum(weights, axis=-1), 1, rtol=1e-5)
        for i in range(6):
            assert not np.any(weights[:, i, :, i])  # of the column
        for j in range(5):
            assert np.all(weights[:, :, j, 6 + j])  # of the row


@pytest.mark.parametrize("shape", [(1, 1, 5, 8), (1, 5, 1, 8), (2, 1, 1, 8)])
def test_criss_cross_attention_of_one_row_or_column(shape):
    x = np.random.default_rng(0).normal(size=shape)
    variables = random_variables("criss_cross_attention", 8)
    single = jax.tree.map(np.float32, variables)
    bound = maps_of("criss_cross_attention", single)

    def total(x):
        y = vision.criss_cross_attention(x, **bound)
        return jnp.sum(y**2), y

    gradient, y = jax.jit(jax.grad(total, has_aux=True))(x.astype(np.float32))
    assert_close(y, oracles.criss_cross_attention(x, merged(variables)), 2 * FORWARD["float32"])
    chex.assert_tree_all_finite(gradient)


def test_criss_cross_scores_grow_with_the_height_plus_the_width():
    query, key, value = dense(8, 1, 1), dense(8, 1, 2), dense(8, 8, 3)

    def temporary_bytes(size):
        x = jax.ShapeDtypeStruct((1, size, size, 8), jnp.float32)
        step = functools.partial(
            vision.criss_cross_attention,
            query=query,
            key=key,
            value=value,
            gamma=jnp.array(1.0),
            recurrence=1,
        )
        return jax.jit(step).lower(x).compile().memory_analysis().temp_size_in_bytes

    # Sixteen times as many places: 4³ = 64 times the scores of a cross, 256 times those of all.
    assert temporary_bytes(64) < 80 * temporary_bytes(16)


def test_external_attention_normalises_over_places_and_then_over_slots():
    weights = weights_of("external_attention", X)
    chex.assert_shape(weights, (2, 6, 5, 64))
    chex.assert_trees_all_close(np.sum(weights, axis=-1), 1, rtol=1e-5)
    one_place = weights_of("external_attention", X[:, :1, :1])
    chex.assert_trees_all_close(one_place, 1 / 64, rtol=1e-5)  # whatever its features are


def test_double_attention_gathers_over_places_and_distributes_over_descriptors():
    gathering, distributing = weights_of("double_attention", X)
    assert gathering.shape == distributing.shape == (2, 6, 5, 8)
    chex.assert_trees_all_close(np.sum(gathering, axis=(1, 2)), 1, rtol=1e-5)
    chex.assert_trees_all_close(np.sum(distributing, axis=-1), 1, rtol=1e-5)


# Traps


@every_mixer
def test_images_of_a_batch_do_not_see_one_another(name):
    variables = random_variables(name, 32, dtype=np.float32)
    apply = jax.jit(functools.partial(getattr(vision, name), **maps_of(name, variables)))
    first, changed = np.asarray(apply(X))[:1], np.stack([X[0], 0 * X[1]])
    chex.assert_trees_all_equal(np.asarray(apply(changed))[:1], first)
    assert_close(apply(X[:1]), first, FORWARD["float32"])


def test_non_local_scales_by_the_reduced_width_and_position_attention_does_not():
    query, key, value = dense(32, 4, 1), dense(32, 4, 2), dense(32, 32, 3)
    non_local = functools.partial(call, vision.non_local, X, query, key, value, identity)
    scaled = non_local()
    plain = call(vision.position_attention, X, query, key, value, jnp.array(1.0))
    assert_close(non_local(scale=1.0), plain, 1e-6)
    assert_close(non_local(scale=0.5), scaled, 1e-6)
    assert not np.allclose(scaled, plain, rtol=1e-2)


def test_subsampled_keys_and_values_are_maxima_and_drop_what_is_left_over():
    x = RNG.normal(size=(2, 7, 5, 32)).astype(np.float32)

    def attend(x):
        seen = []
        key = lambda image: seen.append(image) or dense(32, 4, 2)(image)
        given = (dense(32, 4, 1), key, dense(32, 4, 3), dense(4, 32))
        return *vision.non_local(x, *given, subsample=2, return_weights=True), seen[0]

    y, weights, seen = jax.jit(attend)(x)
    # As PyTorch's, 7 × 5 -> 3 × 2.
    chex.assert_trees_all_equal(seen, x[:, :6, :4].reshape(2, 3, 2, 2, 2, 32).max((2, 4)))
    chex.assert_equal_shape([y, x])
    chex.assert_shape(weights, (2, 35, 6))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_softmaxes_over_many_places_are_float32(dtype):
    x = np.zeros((1, 64, 64, 8), jnp.dtype(dtype))  # 4096 equal weights: 1 / 4096, which sum to 1
    nothing = maps.dense(jnp.zeros((8, 8)))
    gathering, _ = call(vision.double_attention, x, *[nothing] * 4, return_weights=True)[1]
    chex.assert_type(gathering, jnp.float32)
    chex.assert_trees_all_close(np.sum(gathering, axis=(1, 2)), 1)
    ones = np.ones_like(x)
    y = call(vision.position_attention, ones, nothing, nothing, identity, jnp.array(1.0))
    chex.assert_type(y, dtype)
    assert_close(y, np.full(x.shape, 2.0), FORWARD[dtype])
    y = call(vision.double_attention, ones, identity, nothing, nothing, identity)
    assert_close(y, np.full(x.shape, 2.0), FORWARD[dtype])


def test_the_statistics_of_a_training_batch_normalise_the_branch():
    for name in ("non_local", "external_attention"):
        variables = random_variables(name, 32, dtype=np.float32)
        norm = variables["params"]["norm"]
        norm["scale"], norm["bias"] = np.ones(32, np.float32), np.zeros(32, np.float32)
        options = {"activation_fn": identity} if name == "external_attention" else {}
        module = linen_module(name, train=True, **options)
        y, _ = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))(variables, X)
        branch = np.asarray(y, np.float64) - X
        chex.assert_trees_all_close(branch.mean(axis=(0, 1, 2)), 0, rtol=1e-7, atol=1e-5)
        assert np.all(branch.std(axis=(0, 1, 2)) > 0.5)


def test_criss_cross_modules_step_as_often_as_they_are_told():
    variables = random_variables("criss_cross_attention", 32)
    expected = WIDE
    for _ in range(3):
        expected = criss_cross_step(expected, merged(variables))
    single = jax.tree.map(np.float32, variables)
    y = jax.jit(linen.CrissCrossAttention(recurrence=3).apply)(single, X)
    assert_close(y, expected, 3 * FORWARD["float32"])


# Weights of the modules


@every_mixer
def test_modules_sow_the_weights_of_the_function(name):
    variables = random_variables(name, 32, dtype=np.float32)
    expected = weights_of(name, X)
    asked = {"sow_weights": True} if name in ON_REQUEST else {}
    apply = functools.partial(linen_module(name).apply, mutable=["intermediates"], **asked)
    y, sown = jax.jit(apply)(variables, X)
    (weights,) = sown["intermediates"]["attention_weights"]
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), weights, expected)
    made = load(nnx_module(name, 32), variables)
    made.eval()
    capture = flax_nnx.capture(lambda m, x: m(x, **asked), flax_nnx.Intermediate)
    other, captured = flax_nnx.jit(capture)(made, X)
    assert_close(other, y, FORWARD["float32"])
    (weights,) = flax_nnx.to_pure_dict(captured)["attention_weights"]
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), weights, expected)


@pytest.mark.parametrize("name", ON_REQUEST)
def test_costly_weights_are_sown_only_on_request(name):
    variables = random_variables(name, 32, dtype=np.float32)
    apply = functools.partial(linen_module(name).apply, mutable=["intermediates"])
    _, sown = jax.eval_shape(apply, variables, X)
    assert not sown
    made = load(nnx_module(name, 32), variables)
    made.eval()
    with pytest.raises(ValueError, match=r"attention_weights can be sown only inside nnx\.capture"):
        jax.eval_shape(lambda x: made(x, sow_weights=True), X)


# Errors

Y = X[..., :16]
ONE = jnp.array(1.0)
ERRORS = {
    "gamma per channel": (
        lambda: vision.position_attention(Y, *[identity] * 3, jnp.ones(16)),
        r"position_attention: gamma must be one number, \[\], got \[16\]",
    ),
    "no query channel": (
        lambda: vision.position_attention(Y, dense(16, 0), dense(16, 0), identity, ONE),
        "position_attention: query must keep at least 1 channel, got 0",
    ),
    "position_attention key": (
        lambda: vision.position_attention(Y, dense(16, 4), dense(16, 2), identity, ONE),
        r"key must return \[\*B, H, W, R\] = \[2, 6, 5, 4\], got \[2, 6, 5, 2\]",
    ),
    "position_attention value": (
        lambda: vision.position_attention(Y, identity, identity, dense(16, 2), ONE),
        r"value must return \[\*B, H, W, C\] = \[2, 6, 5, 16\], got \[2, 6, 5, 2\]",
    ),
    "channel_affinity_attention gamma": (
        lambda: vision.channel_affinity_attention(Y, jnp.ones(1)),
        r"channel_affinity_attention: gamma must be one number, \[\], got \[1\]",
    ),
    "criss_cross_attention query": (
        lambda: vision.criss_cross_attention(Y, lambda u: u[:, :1], *[identity] * 2, ONE),
        r"query must return \[\*B, H, W, R\] = \[2, 6, 5, 16\], got \[2, 1, 5, 16\]",
    ),
    "no step": (
        lambda: vision.criss_cross_attention(Y, *[identity] * 3, ONE, recurrence=0),
        "criss_cross_attention: recurrence must be at least 1, got 0",
    ),
    "no slot": (
        lambda: vision.external_attention(Y, identity, dense(16, 0), dense(0, 16), identity),
        "external_attention: key must keep at least 1 channel, got 0",
    ),
    "external_attention out": (
        lambda: vision.external_attention(Y, identity, dense(16, 4), dense(4, 8), identity),
        r"out must return \[\*B, H, W, C\] = \[2, 6, 5, 16\], got \[2, 6, 5, 8\]",
    ),
    "no slot of a module": (
        lambda: nnx.ExternalAttention(16, memory_size=0, rngs=flax_nnx.Rngs(0)),
        "ExternalAttention: memory_size must be at least 1, got 0",
    ),
    "no descriptor": (
        lambda: vision.double_attention(Y, identity, *[dense(16, 0)] * 2, identity),
        "double_attention: gather must keep at least 1 channel, got 0",
    ),
    "double_attention distribute": (
        lambda: vision.double_attention(Y, identity, dense(16, 4), dense(16, 2), identity),
        r"distribute must return \[\*B, H, W, S\] = \[2, 6, 5, 4\], got \[2, 6, 5, 2\]",
    ),
    "no descriptor of a module": (
        lambda: linen.DoubleAttention(num_descriptors=0).init(jax.random.key(0), Y),
        "DoubleAttention: num_descriptors must be at least 1, got 0",
    ),
    "an image smaller than the window": (
        lambda: vision.non_local(Y[:, :1], *[identity] * 4, subsample=2),
        r"H and W must be at least subsample = 2, got H, W = 1, 5",
    ),
    "no window": (
        lambda: vision.non_local(Y, *[identity] * 4, subsample=0),
        "non_local: subsample must be at least 1, got 0",
    ),
    "non_local key": (
        lambda: vision.non_local(Y, dense(16, 4), dense(16, 2), *[identity] * 2, subsample=2),
        r"key must return \[\*B, H', W', R\] = \[2, 3, 2, 4\], got \[2, 3, 2, 2\]",
    ),
    "non_local out": (
        lambda: vision.non_local(Y, identity, identity, dense(16, 4), identity),
        r"out must return \[\*B, H, W, C\] = \[2, 6, 5, 16\], got \[2, 6, 5, 4\]",
    ),
    "non_local phase": (
        lambda: linen.NonLocal().init(jax.random.key(0), Y),
        "NonLocal: use_running_average must be given",
    ),
    "fewer than 8 channels": (
        lambda: nnx.PositionAttention(7, rngs=flax_nnx.Rngs(0)),
        "PositionAttention: C // reduction must be at least 1, got 7 // 8 = 0",
    ),
    "fewer than 8 channels in a cross": (
        lambda: linen.CrissCrossAttention().init(jax.random.key(0), Y[..., :7]),
        "CrissCrossAttention: C // reduction must be at least 1, got 7 // 8 = 0",
    ),
    "one channel": (
        lambda: nnx.NonLocal(1, rngs=flax_nnx.Rngs(0)),
        "NonLocal: C // reduction must be at least 1, got 1 // 2 = 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_refused_with_the_numbers(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
