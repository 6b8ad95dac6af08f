"""Attention gates, gather-excite, polarized and efficient local attention: claims and traps."""

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
from flax_attn.vision._resize import resize_bilinear, resize_nearest
from tests.mechanisms import linen_module, maps_of, merged, random_variables
from tests.oracles import vision as oracles
from tests.oracles.vision.more_gates import bilinear
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(0.3, 1.5, (2, 6, 5, 32)).astype(np.float32)
WIDE = np.asarray(X, np.float64)
GATING = RNG.normal(0.3, 1.5, (2, 2, 3, 8)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def identity(x):
    return x


def apply(module, *inputs):
    """The output for random parameters, and the parameters."""
    inputs = inputs or (X,)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    arrays = [RNG.uniform(0.2, 1.0, leaf.shape).astype(np.float32) - 0.4 for leaf in leaves]
    variables = jax.tree.unflatten(tree, arrays)
    if "batch_stats" in variables:
        statistics = jax.tree.map(np.abs, variables["batch_stats"])
        variables = {**variables, "batch_stats": statistics}
    return jax.jit(module.apply)(variables, *inputs), merged(variables)


def call(function, x, *given, **bound):
    """What a function makes of an image, in one program."""
    return jax.jit(lambda x: function(x, *given, **bound))(x)


# ------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize("sizes", [((2, 3), (5, 7)), ((7, 5), (3, 2)), ((1, 4), (3, 4))])
def test_bilinear_resizing_reads_the_centres_of_places_and_does_not_blur(sizes, x64):
    old, new = sizes
    x = RNG.normal(size=(2, *old, 3))
    expected = bilinear(x, *new)
    assert_close(call(resize_bilinear, x, new), expected, FORWARD["float64"])
    if new < old:
        blurred = jax.image.resize(x, expected.shape, "bilinear")
        assert not np.allclose(blurred, expected, rtol=1e-2)


def test_nearest_resizing_is_that_of_pytorch_not_that_of_jax():
    x = np.arange(5, dtype=np.float32)[:, None, None]
    rows = resize_nearest(x, (7, 1))[:, 0, 0]
    chex.assert_trees_all_equal(rows, np.array([0, 0, 1, 2, 2, 3, 4]))
    chex.assert_trees_all_equal(
        jax.image.resize(x, (7, 1, 1), "nearest")[:, 0, 0][:3], np.array([0, 1, 1])
    )


# ------------------------------------------------------------------------------- attention gate


def test_an_attention_gate_by_hand():
    # One channel, θ sums each 2×2 block of ones: 4. φ(g) = 2 · 0.5 = 1 everywhere. ψ takes 2 away.
    theta = maps.conv(jnp.ones((2, 2, 1, 1)), strides=2, padding=0)
    phi = maps.dense(jnp.array([[2.0]]))
    psi = maps.dense(jnp.array([[1.0]]), jnp.array([-2.0]))
    x, gating = np.ones((4, 4, 1), np.float32), np.full((1, 1, 1), 0.5, np.float32)
    y = call(vision.attention_gate, x, gating, theta, phi, psi)
    chex.assert_trees_all_close(y, sigmoid(4 + 1 - 2))


def test_the_gate_of_an_attention_gate_is_resized_after_the_sigmoid():
    # q is -6 on the left and 6 on the right; between them, in the middle, the gate is linear in σ.
    x = np.broadcast_to(np.array([-6, -6, 6, 6], np.float32)[:, None], (2, 4, 1))
    theta = maps.conv(jnp.full((2, 2, 1, 1), 0.25), strides=2, padding=0)
    zero, one = maps.dense(jnp.zeros((1, 1))), maps.dense(jnp.ones((1, 1)))
    given = (np.ones((1, 1, 1), np.float32), theta, zero, one)
    gate = call(vision.attention_gate_gate, x, *given, activation_fn=identity)
    mixed = 0.75 * sigmoid(-6) + 0.25 * sigmoid(6)
    expected = np.array([sigmoid(-6), mixed, 1 - mixed, sigmoid(6)])
    chex.assert_trees_all_close(gate[0, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (6, 5), (9, 1)])
def test_the_gating_signal_has_a_size_and_channels_of_its_own(size):
    gating = RNG.normal(size=(2, *size, 8)).astype(np.float32)
    y, p = apply(linen.AttentionGate(), X, gating)
    chex.assert_shape(p["phi"]["kernel"], (8, 16))
    expected = oracles.attention_gate(WIDE, np.asarray(gating, np.float64), p)
    assert_close(y, expected, FORWARD["float32"])
    made = nnx.AttentionGate(32, gating_features=8, rngs=flax_nnx.Rngs(0))
    chex.assert_equal_shape([jax.eval_shape(made, X, gating), X])
    with pytest.raises(ValueError, match="the 8 channels that the module was made for"):
        made(X, X)


def test_the_attention_gate_of_most_u_nets_normalises_and_keeps_the_grid():
    gating = RNG.normal(size=(2, 6, 5, 8)).astype(np.float32)
    norm = functools.partial(flax_linen.BatchNorm, use_running_average=True)
    y, p = apply(linen.AttentionGate(strides=1, norm=norm), X, gating)
    theta = oracles.linear(WIDE, {"kernel": p["theta"]["kernel"][0, 0]})
    phi = oracles.linear(np.asarray(gating, np.float64), p["phi"])
    hidden = oracles.relu(oracles.norm(theta, p["theta_norm"]) + oracles.norm(phi, p["phi_norm"]))
    q = oracles.norm(oracles.linear(hidden, p["psi"]), p["psi_norm"])
    assert_close(y, WIDE * oracles.sigmoid(q), FORWARD["float32"])


def test_the_attention_gates_norms_learn_alike_in_linen_and_nnx():
    options = {"momentum": 0.9, "use_fast_variance": False}
    norm = functools.partial(flax_linen.BatchNorm, use_running_average=False, **options)
    module = linen.AttentionGate(norm=norm)
    variables = jax.jit(module.init)(jax.random.key(0), X, GATING)
    training = functools.partial(module.apply, mutable=["batch_stats"])
    y, updated = jax.jit(training)(variables, X, GATING)
    norm = functools.partial(flax_nnx.BatchNorm, **options)
    other = nnx.AttentionGate(32, gating_features=8, norm=norm, rngs=flax_nnx.Rngs(0))
    state = flax_nnx.state(other)
    flax_nnx.replace_by_pure_dict(state, merged(variables))
    flax_nnx.update(other, state)
    other.train()
    assert_close(flax_nnx.jit(lambda m: m(X, GATING))(other), y, FORWARD["float32"])
    for name in ("theta_norm", "phi_norm", "psi_norm"):
        assert_close(getattr(other, name).mean[...], updated["batch_stats"][name]["mean"], 1e-6)


def test_what_an_attention_gate_cannot_join_is_refused():
    bound = maps_of("attention_gate", random_variables("attention_gate", 32, dtype=np.float32))
    gate = functools.partial(vision.attention_gate, **bound)
    with pytest.raises(ValueError, match=r"leading axes of x, \*B = \[2\], got \[3, 2, 3, 32\]"):
        gate(X, jnp.ones((3, 2, 3, 32)))
    with pytest.raises(ValueError, match=r"gating must be \[\*B, h, w, G\].*got \[2, 0, 3, 32\]"):
        gate(X, jnp.ones((2, 0, 3, 32)))
    with pytest.raises(TypeError, match="gating must be floating point, got int32"):
        gate(X, jnp.ones((2, 2, 3, 32), jnp.int32))
    with pytest.raises(ValueError, match=r"\[H, W\] = \[1, 5\], got \[H', W'\] = \[0, 2\]"):
        gate(X[:, :1], X)
    with pytest.raises(
        ValueError, match=r"phi must return .* = \[2, 6, 5, 16\], got \[2, 6, 5, 3\]"
    ):
        gate(X, X, phi=maps.dense(jnp.ones((32, 3))))
    with pytest.raises(ValueError, match="1 // 2 = 0"):
        linen.AttentionGate().init(jax.random.key(0), X[..., :1], X)


# -------------------------------------------------------------------------------- gather-excite


def test_gather_excite_without_parameters_by_hand():
    # e = 2 gathers 3×3 windows around the places 0, 2; outside there is nothing, not zeros.
    x = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    gate = np.asarray(call(vision.gather_excite_gate, x / 16, extent=2))[..., 0]
    corner = np.mean([0, 1, 4, 5]) / 16
    middle = np.mean([5, 6, 7, 9, 10, 11, 13, 14, 15]) / 16
    chex.assert_trees_all_close(gate[0, :2], sigmoid(corner))
    chex.assert_trees_all_close(gate[2:, 2:], sigmoid(middle))


@pytest.mark.parametrize("extent", [None, 2, 4, 8])
def test_gather_excite_of_every_extent_equals_the_oracle(extent, x64):
    expected = oracles.gather_excite(WIDE, {}, extent)
    assert_close(call(vision.gather_excite, WIDE, extent=extent), expected, 1e-13)
    init = linen.GatherExcite(extent=extent).init
    assert not jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), X))


def test_gather_excite_by_local_means_exports_for_any_size():
    shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b, h, w"), 32), jnp.float32)
    apply = functools.partial(vision.gather_excite, extent=4)
    exported = jax.export.export(jax.jit(apply))(shape)
    assert_close(exported.call(X), jax.jit(apply)(X), FORWARD["float32"])


def test_gather_excite_by_the_mean_of_all_and_a_perceptron_is_squeeze_and_excitation():
    variables = random_variables("squeeze_excite", 32, dtype=np.float32)
    bound = maps_of("squeeze_excite", variables)
    actual = call(vision.gather_excite, X, **bound)
    assert_close(actual, call(vision.squeeze_excite, X, **bound), FORWARD["float32"])
    module = linen.GatherExcite(reduction=4, use_bias=False)
    assert_close(jax.jit(module.apply)(variables, X), actual, FORWARD["float32"])


@pytest.mark.parametrize("reduction", [None, 16])
def test_gather_excite_over_the_whole_image_by_one_kernel(reduction):
    module = linen_module("gather_excite", extent=(6, 5), reduction=reduction)
    y, p = apply(module)
    chex.assert_shape(p["conv_0"]["kernel"], (6, 5, 1, 32))
    gathered = np.einsum("nhwc,hwc->nc", WIDE, p["conv_0"]["kernel"][:, :, 0])
    gathered = oracles.norm(gathered, p["norm_0"])
    if reduction:
        hidden = oracles.relu(oracles.linear(oracles.relu(gathered), p["reduce"]))
        gathered = oracles.linear(hidden, p["expand"])
    assert_close(y, WIDE * oracles.sigmoid(gathered)[:, None, None], FORWARD["float32"])
    with pytest.raises(ValueError, match=r"\[H, W\] = \[6, 5\].* got \[2, 6, 4, 32\]"):
        module.init(jax.random.key(0), X[:, :, :4])


def test_the_mean_may_gather_images_of_one_size_too():
    made = nnx.GatherExcite(32, extent=(6, 5), rngs=flax_nnx.Rngs(0))
    chex.assert_trees_all_equal(jax.jit(made)(X), call(vision.gather_excite, X))
    with pytest.raises(ValueError, match=r"\[H, W\] = \[6, 5\]"):
        made(X[:, 1:])


def test_gather_excites_default_norm_updates_as_pytorchs():
    """Of a batch of 1000 and 1002 at one place: mean 1001, variance 1, a tenth of both."""
    module = linen.GatherExcite(gather="conv", extent=2, use_running_average=False)
    x = np.array([1000.0, 1002.0], np.float32).reshape(2, 1, 1, 1)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    variables["params"]["conv_0"]["kernel"] = np.ones((3, 3, 1, 1), np.float32)
    training = functools.partial(module.apply, mutable=["batch_stats"])
    _, updated = jax.jit(training)(variables, x)
    chex.assert_trees_all_close(updated["batch_stats"]["norm_0"]["mean"], 100.1)
    chex.assert_trees_all_close(updated["batch_stats"]["norm_0"]["var"], 0.9 + 0.1, rtol=1e-5)


def test_what_does_not_gather_is_refused():
    for extent in (0, 1, 6):
        with pytest.raises(ValueError, match=f"power of 2, at least 2, got {extent}"):
            vision.gather_excite(X, extent=extent)
    with pytest.raises(ValueError, match="extent must be None if convs are given, got 2"):
        vision.gather_excite(X, [identity], [identity], extent=2)
    with pytest.raises(ValueError, match="pair up, got 1 and 0"):
        vision.gather_excite(X, [identity])
    with pytest.raises(ValueError, match="must be given together"):
        vision.gather_excite(X, reduce=identity)
    with pytest.raises(ValueError, match=r"C = 32, got \[2, 6, 5, 3\]"):
        vision.gather_excite(X, [lambda x: x[..., :3]], [identity])
    with pytest.raises(ValueError, match=r"got \[h, w\] = \[0, 5\]"):
        vision.gather_excite(X, [lambda x: x[:, :0]], [identity])
    with pytest.raises(ValueError, match="where convolutions gather, got None"):
        nnx.GatherExcite(32, gather="conv", rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match="power of 2, at least 2, got 6"):
        nnx.GatherExcite(32, gather="conv", extent=6, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"gather must be .*, got 'max'"):
        linen.GatherExcite(gather="max").init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="32 // 64 = 0"):
        linen.GatherExcite(reduction=64).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="use_running_average must be given"):
        linen.GatherExcite(gather="conv", extent=2).init(jax.random.key(0), X)


@pytest.mark.parametrize("extent", [None, 8])
def test_gather_excite_accumulates_half_precision_in_float32(extent):
    seen = []
    see = lambda z: seen.append(z) or z
    x = jnp.full((1, 64, 64, 1), 60.0, jnp.float16)
    vision.gather_excite(x, reduce=see, expand=identity, extent=extent)
    chex.assert_type(seen[0], jnp.float32)
    assert (seen[0] == 60).all()


# -------------------------------------------------------------------------- polarized attention


def test_polarized_attention_by_hand():
    # Places hold (0, 1) and (log 3, 5): the channel query weighs them 1/4 and 3/4, so that the
    # values, the second channel, pool to 4. The spatial query's mean is log 3 / 2 against 0:
    # weights √3 / (1 + √3) and 1 / (1 + √3).
    x = np.array([[[0.0, 1.0], [math.log(3), 5.0]]], np.float32)
    first, second = maps.dense(jnp.array([[1.0], [0.0]])), maps.dense(jnp.array([[0.0], [1.0]]))
    expand = maps.dense(jnp.array([[0.1, -0.2]]))
    query = maps.dense(jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    gate = call(vision.polarized_attention_gate, x, first, second, expand, query, identity)
    weight = math.sqrt(3) / (1 + math.sqrt(3))
    place = sigmoid(weight * math.log(3) + (1 - weight) * 5)
    chex.assert_trees_all_close(gate[0, 1], np.array([sigmoid(0.4) + place, sigmoid(-0.8) + place]))


def test_sequential_polarized_attention_gates_places_of_the_gated_image(x64):
    variables = random_variables("polarized_attention", 32)
    bound = maps_of("polarized_attention", variables)
    y = call(vision.polarized_attention, WIDE, **bound, layout="sequential")
    expected = oracles.polarized_attention(WIDE, merged(variables), "sequential")
    assert_close(y, expected, FORWARD["float64"])
    spatial = {**bound, "channel_expand": lambda z: jnp.full((2, 32), jnp.inf)}
    gate = functools.partial(call, vision.polarized_attention_gate, WIDE)
    alone = np.asarray(gate(**spatial, layout="sequential"))
    channel = gate(**bound) - alone
    assert not np.allclose(y, WIDE * channel * alone, rtol=1e-3)


def test_the_spatial_gate_is_no_constant_as_in_the_released_code():
    """There a softmax over 14 · 14 places follows the product, and σ of that is nearly 1/2."""
    x = RNG.normal(size=(1, 14, 14, 64)).astype(np.float32)
    variables = random_variables("polarized_attention", 64, dtype=np.float32)
    bound = maps_of("polarized_attention", variables)
    bound["channel_expand"] = lambda z: jnp.full((1, 64), -jnp.inf)  # g_c = 0
    gate = call(vision.polarized_attention_gate, x, **bound)
    assert np.min(gate) < 0.45
    assert np.max(gate) > 0.55


def test_polarized_attention_does_not_change_under_a_permutation_of_places():
    bound = maps_of(
        "polarized_attention", random_variables("polarized_attention", 32, 0, np.float32)
    )
    attend = jax.jit(functools.partial(vision.polarized_attention, **bound))
    flipped = np.asarray(attend(X[:, ::-1, ::-1]))
    assert_close(flipped[:, ::-1, ::-1], attend(X), 2e-6)


def test_polarized_attention_may_normalise_its_channels_as_other_versions_do():
    norm = functools.partial(flax_linen.LayerNorm, epsilon=1e-5)
    y, p = apply(linen.PolarizedAttention(norm=norm, use_bias=True))
    tokens = WIDE.reshape(2, 30, 32)
    weights = oracles.softmax(oracles.linear(tokens, p["channel_query"]), axis=1)
    pooled = (weights * oracles.linear(tokens, p["channel_value"])).sum(axis=1)
    z = oracles.linear(pooled, p["channel_expand"])
    z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
    channel = oracles.sigmoid(z * p["channel_norm"]["scale"] + p["channel_norm"]["bias"])
    query = oracles.linear(WIDE, p["spatial_query"]).mean((1, 2))
    mixed = oracles.softmax(query)[:, None, None] * oracles.linear(WIDE, p["spatial_value"])
    gate = channel[:, None, None] + oracles.sigmoid(mixed.sum(-1, keepdims=True))
    assert_close(y, WIDE * gate, 2 * FORWARD["float32"])


def test_what_cannot_be_polarized_is_refused():
    with pytest.raises(ValueError, match=r"C must be a multiple of reduction = 2, got C = 5"):
        linen.PolarizedAttention().init(jax.random.key(0), X[..., :5])
    with pytest.raises(ValueError, match=r"C must be a multiple of reduction = 2, got C = 5"):
        nnx.PolarizedAttention(5, rngs=flax_nnx.Rngs(0))
    made = nnx.PolarizedAttention(5, hidden_features=2, rngs=flax_nnx.Rngs(0))
    chex.assert_shape(jax.eval_shape(made, X[..., :5]), (2, 6, 5, 5))
    bound = maps_of(
        "polarized_attention", random_variables("polarized_attention", 32, 0, np.float32)
    )
    with pytest.raises(ValueError, match=r"layout must be .* got 'both'"):
        vision.polarized_attention(X, **bound, layout="both")
    narrow = maps.dense(jnp.ones((32, 3)))
    with pytest.raises(ValueError, match=r"channel_query must return .*\[2, 6, 5, 1\], got"):
        vision.polarized_attention(X, **{**bound, "channel_query": narrow})
    with pytest.raises(ValueError, match=r"spatial_query must return .* got \[2, 6, 5, 3\]"):
        vision.polarized_attention(X, **{**bound, "spatial_query": narrow})
    with pytest.raises(ValueError, match=r"R at least 1, got \[2, 6, 5, 0\]"):
        vision.polarized_attention(X, **{**bound, "channel_value": lambda x: x[..., :0]})


# -------------------------------------------------------------------- efficient local attention


def test_efficient_local_attention_by_hand():
    # Rows have the means 1 and 3, columns 4 and 0. The kernel (0, 1, 1/2) adds half of the next
    # place: (2.5, 3) and (4, 0). Normalised, (-1, 1) and (1, -1).
    x = np.array([[3.0, -1.0], [5.0, 1.0]], np.float32)[..., None]
    conv = maps.conv1d(jnp.array([0.0, 1.0, 0.5]).reshape(3, 1, 1))
    norm = maps.group_norm(num_groups=1, spatial_axes=1, epsilon=0.0)
    height, width = call(vision.efficient_local_attention_gate, x, conv, norm)
    chex.assert_trees_all_close(height[:, 0, 0], np.array([sigmoid(-1), sigmoid(1)]))
    chex.assert_trees_all_close(width[0, :, 0], np.array([sigmoid(1), sigmoid(-1)]))


@pytest.mark.parametrize(
    ("version", "options", "kernel"),
    [
        ("T", {"kernel_size": 5, "num_groups": 32}, (5, 1, 64)),
        ("B", {}, (7, 1, 64)),
        ("S", {"kernel_size": 5, "group_size": 8}, (5, 8, 64)),
        ("L", {"group_size": 8}, (7, 8, 64)),
    ],
)
def test_the_versions_of_efficient_local_attention(version, options, kernel):
    x = RNG.normal(size=(2, 6, 5, 64)).astype(np.float32)
    y, p = apply(linen.EfficientLocalAttention(**options), x)
    assert p["conv"]["kernel"].shape == kernel, version
    groups = options.get("num_groups", 16)
    expected = oracles.efficient_local_attention(np.asarray(x, np.float64), p, groups)
    assert_close(y, expected, 5 * FORWARD["float32"])  # float32 statistics of close numbers


def test_one_convolution_and_one_norm_serve_rows_and_columns():
    variables = random_variables("efficient_local_attention", 32, dtype=np.float32)
    assert set(variables["params"]) == {"conv", "norm"}
    bound = maps_of("efficient_local_attention", variables)
    y = call(vision.efficient_local_attention, X, **bound)
    turned = call(vision.efficient_local_attention, X.swapaxes(1, 2), **bound)
    assert_close(np.swapaxes(turned, 1, 2), y, FORWARD["float32"])


def test_each_image_of_efficient_local_attention_has_statistics_of_its_own():
    module = linen_module("efficient_local_attention")
    variables = random_variables("efficient_local_attention", 32, dtype=np.float32)
    apply = jax.jit(module.apply)
    expected = apply(variables, X)
    assert_close(apply(variables, X[:, None]), expected[:, None], FORWARD["float32"])
    assert_close(apply(variables, X[0]), expected[0], FORWARD["float32"])


def test_one_channel_per_group_and_one_place_leave_the_bias():
    x = RNG.normal(size=(2, 1, 1, 16)).astype(np.float32)
    y, p = apply(linen.EfficientLocalAttention(), x)
    gate = oracles.sigmoid(np.asarray(p["norm"]["bias"], np.float64))
    assert_close(y, x * gate**2, FORWARD["float32"])


@pytest.mark.parametrize(("option", "number"), [("num_groups", 16), ("group_size", 8)])
def test_channels_that_do_not_fall_into_groups_are_refused(option, number):
    with pytest.raises(
        ValueError, match=f"C must be a multiple of {option} = {number}, got C = 20"
    ):
        nnx.EfficientLocalAttention(20, **{"num_groups": 4, option: number}, rngs=flax_nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=f"C must be a multiple of {option} = {number}, got C = 20"
    ):
        linen.EfficientLocalAttention(**{"num_groups": 4, option: number}).init(
            jax.random.key(0), X[..., :20]
        )
