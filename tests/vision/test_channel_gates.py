"""Effective squeeze-and-excitation, scSE, global context, GCT and FcaNet: claims and traps."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import linen, maps, nnx, vision
from tests.mechanisms import maps_of, merged, random_variables
from tests.oracles import vision as oracles
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(0.3, 1.5, (2, 6, 5, 32)).astype(np.float32)
WIDE = np.asarray(X, np.float64)

# One image of 2×2 places and 2 channels: channel 0 is 1, 2, 3, 6 (mean 3, squares 50 in all),
# channel 1 is -1 everywhere (squares 4).
SMALL = np.array([[[[1.0, -1.0], [2.0, -1.0]], [[3.0, -1.0], [6.0, -1.0]]]], np.float32)


def identity(x):
    return x


def dense(*shape):
    return maps.dense(jnp.ones(shape))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def apply(module, x=X):
    """The output, and the module's random parameters."""
    variables = random_variables("", x.shape[-1], dtype=np.float32, module=module)
    return jax.jit(module.apply)(variables, x), merged(variables)


def call(function, x, *given, **bound):
    """What a function makes of an image, in one program."""
    return jax.jit(lambda x: function(x, *given, **bound))(x)


def as_made(module):
    return jax.jit(module.init_with_output)(jax.random.key(0), X)[0]


def count(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 8, 8, 64)))
    assert set(shapes) == {"params"}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("module", "number"),
    [
        (linen.EffectiveSqueezeExcite(), 64 * 64 + 64),
        (linen.SCSE(), 2 * 64 * 32 + 32 + 64 + 64 + 1),
        (linen.GlobalContext(), 653),  # as counted on the released block
        (linen.GatedChannelTransform(), 3 * 64),
        (linen.FrequencyChannelAttention(), 2 * 64 * 4),  # the cosines are no parameters
    ],
)
def test_the_numbers_of_parameters_are_the_papers(module, number):
    assert count(module) == number


# ----------------------------------------------------------------------- effective SE


def test_effective_squeeze_excite_by_hand():
    # z = (3, -1); projected (-0.5, 4); hard sigmoid 2.5 / 6 and 1, for 7 / 6 is too much.
    project = maps.dense(jnp.array([[0.0, 1.0], [0.5, -1.0]]))
    y = call(vision.effective_squeeze_excite, SMALL, project)
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * 2.5 / 6, rel=1e-6)
    assert float(y[0, 0, 0, 1]) == -1.0


def test_effective_squeeze_excite_with_the_papers_sigmoid():
    y, p = apply(linen.EffectiveSqueezeExcite(gate_fn=jax.nn.sigmoid))
    gate = oracles.sigmoid(oracles.linear(WIDE.mean((1, 2)), p["project"]))
    assert_close(y, WIDE * gate[:, None, None], FORWARD["float32"])


# ------------------------------------------------------------------------------ scSE


def small_scse(x, combine):
    """g_c = σ(1), σ(-0.5): hidden = ReLU(0.5 · 3 - 1); g_s = σ(x_0 + 4 x_1 )."""
    reduce = maps.dense(jnp.array([[0.5], [1.0]]))
    expand, project = maps.dense(jnp.array([[2.0, -1.0]])), maps.dense(jnp.array([[1.0], [4.0]]))
    return call(vision.scse, x, reduce, expand, project, combine=combine)


def test_scse_by_hand():
    largest = small_scse(SMALL, "max")
    # At the last place g_s = σ(2) is more than either gate of channels: a negative channel takes
    # the smaller gate, for that gives the larger number.
    assert float(largest[0, 1, 1, 0]) == pytest.approx(6 * sigmoid(2.0), rel=1e-6)
    assert float(largest[0, 1, 1, 1]) == pytest.approx(-sigmoid(-0.5), rel=1e-6)
    # At the first one g_s = σ(-3) is less.
    assert float(largest[0, 0, 0, 0]) == pytest.approx(sigmoid(1.0), rel=1e-6)
    assert float(largest[0, 0, 0, 1]) == pytest.approx(-sigmoid(-3.0), rel=1e-6)
    added = small_scse(SMALL, "add")
    assert float(added[0, 1, 1, 1]) == pytest.approx(-sigmoid(-0.5) - sigmoid(2.0), rel=1e-6)


def test_scse_of_the_paper_adds():
    y, p = apply(linen.SCSE(combine="add", reduction=16))
    chex.assert_shape(p["reduce"]["kernel"], (32, 2))
    assert_close(y, oracles.scse(WIDE, p, combine="add"), FORWARD["float32"])


def test_the_gradient_of_scse_at_zeros_is_that_of_a_maximum():
    # After a ReLU most values are 0, where both scaled images are: a maximum of equals halves.
    x = np.maximum(X, 0)
    x[:, :2] = 0
    bound = maps_of("scse", random_variables("scse", 32, dtype=np.float32))

    def by_maximum(x):
        hidden = jax.nn.relu(bound["reduce"](x.mean((1, 2))))
        channel = jax.nn.sigmoid(bound["expand"](hidden))[:, None, None]
        return jnp.maximum(x * channel, x * jax.nn.sigmoid(bound["project"](x)))

    cotangent = RNG.normal(size=x.shape).astype(np.float32)

    def value_and_gradient(f):
        value, pull_back = jax.vjp(f, x)
        return value, pull_back(cotangent)[0]

    ours = jax.jit(lambda: value_and_gradient(functools.partial(vision.scse, **bound)))()
    for actual, expected in zip(
        ours, jax.jit(lambda: value_and_gradient(by_maximum))(), strict=True
    ):
        assert_close(actual, expected, FORWARD["float32"])


# -------------------------------------------------------------------- global context


def test_global_context_by_hand():
    # The logits ln 1, ln 2, ln 3, ln 6 give the weights 1/12, 2/12, 3/12, 6/12: c = (50/12, -1).
    def score(x):
        return jnp.log(x[..., :1])

    reduce, expand = maps.dense(jnp.array([[6.0], [5.0]])), maps.dense(jnp.array([[0.1, -1.0]]))
    weights = call(vision.global_context_weights, SMALL, score)
    chex.assert_trees_all_close(weights.ravel(), np.array([1, 2, 3, 6]) / 12)
    context = functools.partial(call, vision.global_context, SMALL, score, reduce, identity, expand)
    added = np.asarray(context()) - SMALL  # hidden = 25 - 5
    chex.assert_trees_all_close(added.reshape(4, 2), np.array([[2.0, -20.0]] * 4), rtol=1e-5)
    scaled = context(combine="multiply")
    assert float(scaled[0, 1, 1, 0]) == pytest.approx(6 * sigmoid(2.0), rel=1e-5)


@pytest.mark.parametrize(("combine", "use_attention"), [("add", False), ("multiply", True)])
def test_global_context_pools_and_combines_as_asked(combine, use_attention):
    module = linen.GlobalContext(reduction=4, combine=combine, use_attention=use_attention)
    y, p = apply(module)
    assert ("score" in p) == use_attention
    assert_close(y, oracles.global_context(WIDE, p, combine=combine), FORWARD["float32"])


def test_global_context_starts_as_the_identity():
    made = nnx.GlobalContext(32, rngs=flax_nnx.Rngs(0))
    chex.assert_trees_all_equal(as_made(linen.GlobalContext()), jax.jit(made)(X), X)


def test_global_context_adds_the_same_to_every_place():
    y, _ = apply(linen.GlobalContext(reduction=4))
    difference = np.asarray(y) - X
    assert np.abs(difference).max() > 0.1
    chex.assert_trees_all_close(
        difference, np.broadcast_to(difference[:, :1, :1], X.shape), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_over_many_places_sum_to_one_in_every_dtype(dtype):
    x = RNG.normal(size=(2, 64, 64, 4)).astype(jnp.dtype(dtype))
    weights = call(vision.global_context_weights, x, dense(4, 1))
    chex.assert_type(weights, jnp.float32)
    chex.assert_shape(weights, (2, 64, 64, 1))
    chex.assert_trees_all_close(np.sum(weights, (1, 2, 3)), 1, rtol=1e-5)


def test_a_bias_of_the_score_changes_nothing():
    kernel = jnp.asarray(RNG.normal(size=(32, 1)), jnp.float32)
    plain, shifted = (maps.dense(kernel, bias) for bias in (None, jnp.array([10.0])))
    weights = call(vision.global_context_weights, X, plain)
    assert_close(call(vision.global_context_weights, X, shifted), weights, 5e-6)


def test_large_logits_do_not_overflow():
    weights = call(vision.global_context_weights, SMALL, lambda x: 1e4 * x[..., :1])
    chex.assert_trees_all_equal(weights.ravel(), np.array([0, 0, 0, 1]))


def test_global_context_sows_its_weights():
    module = linen.GlobalContext(reduction=4)
    variables = random_variables("global_context", 32, dtype=np.float32)
    _, sown = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))(variables, X)
    (weights,) = sown["intermediates"]["attention_weights"]
    score = maps_of("global_context", variables)["score"]
    assert_close(weights, call(vision.global_context_weights, X, score), FORWARD["float32"])
    mean = linen.GlobalContext(use_attention=False)
    assert set(jax.eval_shape(mean.init, jax.random.key(0), X)) == {"params"}


def test_the_layer_normalisation_of_a_context_is_pytorchs():
    # Flax's own has ε = 1e-6, and its fast variance loses 0.003² beside 1000².
    c = 1000 + np.array([-0.003, 0.003])
    norm = linen.GlobalContext().norm()
    y = norm.apply(norm.init(jax.random.key(0), jnp.ones(2)), jnp.asarray(c, jnp.float32))
    centred = np.asarray(c, np.float32) - np.asarray(c, np.float32).mean()
    expected = centred / np.sqrt(np.square(centred).mean() + 1e-5)
    chex.assert_trees_all_close(y, expected, rtol=1e-4)
    other = nnx.GlobalContext(32, reduction=16, rngs=flax_nnx.Rngs(0)).norm
    chex.assert_trees_all_close(other(jnp.asarray(c, jnp.float32)), expected, rtol=1e-4)


def test_global_context_takes_batch_normalisation_that_knows_its_phase():
    norm = functools.partial(flax_linen.BatchNorm, use_running_average=False, momentum=0.9)
    module = linen.GlobalContext(reduction=4, norm=norm)
    variables = random_variables("", 32, dtype=np.float32, module=module)
    _, updated = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))(variables, X)
    assert not np.allclose(
        updated["batch_stats"]["norm"]["mean"], variables["batch_stats"]["norm"]["mean"]
    )


# ------------------------------------------------------------------------------- GCT


def test_gated_channel_transform_by_hand():
    # Norms √50 and 2, of which α makes 2√50 and 2; the root of their mean square is √(204 / 2).
    arrays = (jnp.array(a) for a in ([2.0, 1.0], [0.5, 3.0], [0.0, -1.0]))
    y = call(vision.gated_channel_transform, SMALL, *arrays)
    first = 1 + math.tanh(2 * math.sqrt(50) * 0.5 / math.sqrt(102))
    second = 1 + math.tanh(2 * 3 / math.sqrt(102) - 1)
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * first, rel=1e-5)
    assert float(y[0, 0, 0, 1]) == pytest.approx(-second, rel=1e-5)


def test_gated_channel_transform_starts_as_the_identity():
    made = nnx.GatedChannelTransform(32)
    chex.assert_trees_all_equal(as_made(linen.GatedChannelTransform()), jax.jit(made)(X), X)


@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_a_positive_gamma_lets_strong_channels_grow_a_negative_one_evens_out(gamma):
    ones = np.ones(32, np.float32)
    gate = call(vision.gated_channel_transform_gate, X, ones, np.float32(gamma) * ones, 0 * ones)
    order = np.argsort(gamma * np.sum(X**2, (1, 2)), axis=-1)
    assert (np.diff(np.take_along_axis(np.asarray(gate)[:, 0, 0], order, axis=-1)) >= 0).all()


def test_gated_channel_transform_does_not_see_the_scale_of_an_image():
    variables = random_variables("gated_channel_transform", 32, dtype=np.float32)
    bound = maps_of("gated_channel_transform", variables)
    gate = jax.jit(functools.partial(vision.gated_channel_transform_gate, **bound))
    assert_close(gate(100 * X), gate(X), 1e-5)


def test_gated_channel_transform_has_a_gradient_at_zeros():
    ones = np.ones(4, np.float32)

    def loss(x, alpha):
        return jnp.sum(vision.gated_channel_transform(x, alpha, ones, ones) * (1 + x))

    x = np.zeros((1, 3, 3, 4), np.float32)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, 0 * ones)
    chex.assert_tree_all_finite(gradients)
    chex.assert_trees_all_close(gradients[0], 1 + math.tanh(1))


def test_the_sum_of_squares_does_not_overflow_in_float16():
    x = np.full((1, 64, 64, 4), 60.0, np.float16)  # 60² · 64² = 1.5e7
    ones = np.ones(4, np.float32)
    gate = call(vision.gated_channel_transform_gate, x, ones, ones, 0 * ones)
    chex.assert_trees_all_close(gate, 1 + math.tanh(1), rtol=1e-3)


# ---------------------------------------------------------------------------- FcaNet


def spectrum(x, **options):
    """What frequency channel attention pools."""

    def pooled(x):
        seen = []
        vision.frequency_channel_attention(x, lambda z: seen.append(z) or z, identity, **options)
        return seen[0]

    return jax.jit(pooled)(x)


@pytest.mark.parametrize("size", [(7, 7), (14, 21)])
def test_with_the_lowest_frequency_it_is_squeeze_excite(size):
    x = RNG.normal(size=(2, *size, 8)).astype(np.float32)
    pooled = spectrum(x, frequencies=[(0, 0)])
    assert_close(pooled, 7 * np.asarray(x, np.float64).mean((1, 2)), FORWARD["float32"])
    reduce, expand = (RNG.normal(size=s).astype(np.float32) for s in ((8, 3), (3, 8)))
    layers = (maps.dense(reduce), maps.dense(expand))
    y = call(vision.frequency_channel_attention, x, *layers, frequencies=1)
    expected = call(vision.squeeze_excite, x, maps.dense(7 * reduce), layers[1])
    assert_close(y, expected, 2 * FORWARD["float32"])


def test_the_first_number_of_a_frequency_is_that_of_the_height():
    rows = np.cos(np.pi * 3 * (np.arange(7) + 0.5) / 7) * np.sqrt(2 / 7) / np.sqrt(7)
    x = np.broadcast_to(rows[:, None, None], (7, 7, 4)).astype(np.float32)
    pooled = spectrum(x, frequencies=((3, 0), (0, 3), (0, 0), (1, 0)))
    chex.assert_trees_all_close(pooled, np.array([1, 0, 0, 0]), rtol=1e-7, atol=1e-6)


def test_the_cosines_are_orthonormal(x64):
    pairs = [(u, v) for u in range(7) for v in range(7)]
    total = lambda x: jnp.sum(spectrum(x, frequencies=pairs, dct_size=(14, 21)))
    basis = jax.jit(jax.grad(total))(np.ones((14, 21, 49)))  # a channel is pooled by one plane
    planes = np.reshape(basis, (-1, 49)).T
    chex.assert_trees_all_close(planes @ planes.T, np.eye(49), rtol=1e-7, atol=1e-13)


def test_a_frequency_of_the_7_by_7_plane_is_scaled_to_a_larger_one():
    x = RNG.normal(size=(28, 28, 1)).astype(np.float32)
    turns = np.pi * 4 * 2 * (np.arange(28) + 0.5) / 28  # (2, 0) is (8, 0) of 28
    expected = np.sum(x[..., 0] * np.cos(turns)[:, None]) * np.sqrt(2) / 28
    pooled = spectrum(x, frequencies=[(2, 0)], dct_size=28)
    assert float(pooled[0]) == pytest.approx(expected, rel=1e-5)


def test_groups_of_channels_follow_one_another():
    x = np.ones((7, 7, 6), np.float32)
    pooled = spectrum(x, frequencies=[(0, 0), (1, 0), (0, 1)])
    chex.assert_trees_all_close(pooled, np.array([7, 7, 0, 0, 0, 0]), rtol=1e-7, atol=1e-5)


def test_frequency_pooling_does_not_accumulate_in_half_precision():
    for dtype, value in (("bfloat16", 1.0), ("float16", 60.0)):
        x = np.full((1, 64, 64, 4), value, jnp.dtype(dtype))
        pooled = spectrum(x, frequencies=1, dct_size=(64, 64))
        chex.assert_type(pooled, jnp.float32)
        chex.assert_trees_all_close(pooled, 64 * value)


@pytest.mark.parametrize(("frequencies", "size"), [(32, 7), (16, (7, 14)), (4, 28)])
def test_frequency_channel_attention_with_other_planes(frequencies, size):
    module = linen.FrequencyChannelAttention(frequencies=frequencies, dct_size=size)
    y, p = apply(module)
    sizes = size if isinstance(size, tuple) else (size, size)
    expected = oracles.frequency_channel_attention(WIDE, p, frequencies, sizes)
    assert_close(y, expected, FORWARD["float32"])


def test_frequencies_may_be_a_list_in_both_modules():
    pairs = [(0, 0), (0, 1)]
    variables = random_variables("frequency_channel_attention", 32, dtype=np.float32)
    made = nnx.FrequencyChannelAttention(32, frequencies=pairs, rngs=flax_nnx.Rngs(0))
    for name in ("reduce", "expand"):
        getattr(made, name).kernel[...] = jnp.asarray(variables["params"][name]["kernel"])
    actual, two = (
        jax.jit(linen.FrequencyChannelAttention(frequencies=f).apply)(variables, X)
        for f in (pairs, 2)
    )
    assert_close(jax.jit(made)(X), actual, FORWARD["float32"])
    chex.assert_trees_all_equal(actual, two)


# ---------------------------------------------------------------------------- errors


def frequency(**options):
    return lambda: vision.frequency_channel_attention(X, dense(32, 2), dense(2, 32), **options)


def context(*layers, **options):
    return lambda: vision.global_context(X, *layers, **options)


REFUSED = {
    "eSE map": (
        lambda: vision.effective_squeeze_excite(X, dense(32, 1)),
        r"effective_squeeze_excite: project must return \[\*B, C\] = \[2, 32\], got \[2, 1\]",
    ),
    "scSE join": (
        lambda: vision.scse(X, dense(32, 4), dense(4, 32), dense(32, 1), combine="mul"),
        """scse: combine must be "max" or "add", got 'mul'""",
    ),
    "scSE without channels": (
        lambda: vision.scse(X, dense(32, 0), dense(0, 32), dense(32, 1)),
        "scse: reduce must keep at least 1 channel",
    ),
    "scSE expand": (
        lambda: vision.scse(X, dense(32, 4), dense(4, 1), dense(32, 1)),
        r"scse: expand must return \[\*B, C\] = \[2, 32\], got \[2, 1\]",
    ),
    "scSE with a gate of each channel and place": (
        lambda: vision.scse(X, dense(32, 4), dense(4, 32), dense(32, 32)),
        r"project must return \[\*B, H, W, 1\] = \[2, 6, 5, 1\], got \[2, 6, 5, 32\]",
    ),
    "scSE reduction": (
        lambda: linen.SCSE().init(jax.random.key(0), X[..., :1]),
        r"SCSE: C // reduction must be at least 1, got 1 // 2 = 0",
    ),
    "context join": (
        context(None, dense(32, 2), identity, dense(2, 32), combine=None),
        'global_context: combine must be "add" or "multiply", got None',
    ),
    "context score": (
        context(dense(32, 2), dense(32, 2), identity, dense(2, 32)),
        r"score must return \[\*B, H, W, 1\] = \[2, 6, 5, 1\], got \[2, 6, 5, 2\]",
    ),
    "context without channels": (
        context(None, dense(32, 0), identity, dense(0, 32)),
        "global_context: reduce must keep at least 1 channel",
    ),
    "context expand": (
        context(None, dense(32, 2), identity, dense(2, 1)),
        r"expand must return \[\*B, C\] = \[2, 32\], got \[2, 1\]",
    ),
    "context reduction": (
        lambda: nnx.GlobalContext(8, rngs=flax_nnx.Rngs(0)),
        r"GlobalContext: C // reduction must be at least 1, got 8 // 16 = 0",
    ),
    "gamma": (
        lambda: vision.gated_channel_transform(X, jnp.ones(32), jnp.ones((32, 1)), jnp.ones(32)),
        r"gated_channel_transform: gamma must be \[C\] = \[32\], got \[32, 1\]",
    ),
    "channels of another transform": (
        lambda: nnx.GatedChannelTransform(8)(X),
        "GatedChannelTransform: x must have the 8 channels",
    ),
    "groups of channels": (
        frequency(frequencies=[(0, 0), (1, 0), (0, 1)]),
        "C must be a multiple of the number of frequencies, got 32 and 3",
    ),
    "a small plane": (frequency(dct_size=(7, 6)), r"dct_size must .* at least 7, got \(7, 6\)"),
    "three sizes": (
        frequency(dct_size=(7, 7, 7)),
        r"dct_size must be one number or .* \(7, 7, 7\)",
    ),
    "too many frequencies": (frequency(frequencies=33), "must be 1 to 32 of the paper's, got 33"),
    "no frequency": (frequency(frequencies=0), "must be 1 to 32 of the paper's, got 0"),
    "an empty list": (frequency(frequencies=[]), r"must be pairs \(u, v\)"),
    "unequal frequencies": (frequency(frequencies=[(0, 1), (1,)]), r"must be pairs \(u, v\)"),
    "an unknown frequency": (frequency(frequencies=[(0, 7)]), r"from 0 to 6, got \[\(0, 7\)\]"),
    "half a frequency": (frequency(frequencies=[(0, 0.5)]), r"whole numbers from 0 to 6"),
    "one number each": (frequency(frequencies=[0, 1]), r"must be pairs \(u, v\)"),
    "frequency expand": (
        lambda: vision.frequency_channel_attention(X, dense(32, 2), dense(2, 1)),
        r"expand must return \[\*B, C\] = \[2, 32\], got \[2, 1\]",
    ),
    "frequency without channels": (
        lambda: vision.frequency_channel_attention(X, dense(32, 0), dense(0, 32)),
        "frequency_channel_attention: reduce must keep at least 1 channel",
    ),
}


def test_frequencies_and_sizes_may_be_lists_or_of_numpy():
    expected = frequency(frequencies=((0, 0), (1, 2)), dct_size=(14, 7))()
    pairs = [[0, 0], [1, 2]]
    for frequencies in (pairs, np.array(pairs), [(0, 0), np.array([1, 2])]):
        for size in ([14, 7], (np.int64(14), 7)):
            assert_close(frequency(frequencies=frequencies, dct_size=size)(), expected, 0)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_with_the_numbers(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("options", [{"frequencies": 1.5}, {"dct_size": 7.0}])
def test_numbers_that_are_not_whole_are_refused(options):
    with pytest.raises(TypeError, match="must be one whole number"):
        frequency(**options)()
