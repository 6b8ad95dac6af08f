"""Triplet attention, spatial group enhancement, shuffle attention, efficient multi-scale attention.

Their hand-made numbers, what their papers claim, and the traps that popular code falls into.
"""

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
# One image of 2×2 places and 2 channels: channel 0 is 1, 2, 3, 6 (mean 3, variance 14 / 4), channel
# 1 is -1 everywhere.
X = np.array([[[[1.0, -1.0], [2.0, -1.0]], [[3.0, -1.0], [6.0, -1.0]]]], np.float32)
IMAGE = RNG.normal(0.3, 1.5, (2, 6, 5, 32)).astype(np.float32)
NAMES = (
    "triplet_attention",
    "spatial_group_enhance",
    "shuffle_attention",
    "efficient_multi_scale_attention",
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def identity(x):
    return x


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def initial(module, channels):
    """The shapes of the variables."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 3, 4, channels)))


def call(function, x, *given, **bound):
    """What a function makes of an image, in one program."""
    return jax.jit(lambda x: function(x, *given, **bound))(x)


def as_made(module, x):
    return jax.jit(module.init_with_output)(jax.random.key(0), x)[0]


# Triplet attention.


def triplet(x, kernel):
    return call(vision.triplet_attention, x, *[maps.conv(kernel), identity] * 3)


def test_triplet_attention_weighs_the_maximum_and_the_mean_of_each_axis():
    # Maximum less mean, of channel 0 at the last place: over its column 6 - 4, over its row
    # 6 - 4.5, over the channels 6 - 2.5.
    y = triplet(X, np.array([1.0, -1.0], np.float32).reshape(1, 1, 2, 1))
    expected = 6 * (sigmoid(2.0) + sigmoid(1.5) + sigmoid(3.5)) / 3
    assert float(y[0, 1, 1, 0]) == pytest.approx(expected, rel=1e-6)


def test_the_kernels_rows_run_along_channels_then_height_then_height():
    # One tap, on the maximum of the row before in each plane. Of channel 1 at the last place, it
    # reads channel 0 of that column (maximum 6), the row above in channel 1 (-1), and the row above
    # in that column (2).
    kernel = np.zeros((3, 3, 2, 1), np.float32)
    kernel[0, 1, 0, 0] = 1
    y = triplet(X, kernel)
    expected = -(sigmoid(6.0) + sigmoid(-1.0) + sigmoid(2.0)) / 3
    assert float(y[0, 1, 1, 1]) == pytest.approx(expected, rel=1e-6)


def test_triplet_attention_of_a_turned_image_is_that_of_turned_kernels():
    variables = random_variables("triplet_attention", 32, dtype=np.float32)
    bound = maps_of("triplet_attention", variables)
    kernels = {name: bound[name].args[0] for name in ("conv_cw", "conv_hc", "conv_hw")}
    turned = {name: maps.conv(jnp.swapaxes(kernel, 0, 1)) for name, kernel in kernels.items()}
    swapped = {
        "conv_cw": turned["conv_hc"],
        "norm_cw": bound["norm_hc"],
        "conv_hc": turned["conv_cw"],
        "norm_hc": bound["norm_cw"],
        "conv_hw": turned["conv_hw"],
        "norm_hw": bound["norm_hw"],
    }
    y = call(vision.triplet_attention, IMAGE.swapaxes(1, 2), **swapped)
    expected = call(vision.triplet_attention, IMAGE, **bound)
    assert_close(np.swapaxes(y, 1, 2), expected, FORWARD["float32"])
    assert not np.allclose(call(vision.triplet_attention, IMAGE, **swapped), expected, rtol=1e-2)


def test_without_the_spatial_plane_the_mean_is_of_two_gates():
    module = linen.TripletAttention(use_spatial=False, use_running_average=True)
    variables = random_variables("triplet_attention", 32, dtype=np.float32, module=module)
    assert set(variables["params"]) == {"conv_cw", "norm_cw", "conv_hc", "norm_hc"}
    expected = oracles.triplet_attention(np.asarray(IMAGE, np.float64), merged(variables))
    assert_close(jax.jit(module.apply)(variables, IMAGE), expected, FORWARD["float32"])


def test_triplet_attention_has_300_parameters_whatever_the_width():
    for channels in (3, 64):
        assert count(initial(linen.TripletAttention(use_running_average=True), channels)) == 300


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match=r"TripletAttention: kernel_size must be odd.*got 4"):
        nnx.TripletAttention(kernel_size=4, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"TripletAttention: kernel_size must be odd.*got 4"):
        initial(linen.TripletAttention(kernel_size=4, use_running_average=True), 8)


def test_the_spatial_plane_needs_its_convolution_and_its_norm():
    conv = maps.conv(jnp.ones((3, 3, 2, 1)))
    four = (conv, identity, conv, identity)
    with pytest.raises(ValueError, match="given together, got no norm_hw"):
        vision.triplet_attention(X, *four, conv)
    with pytest.raises(ValueError, match="given together, got no conv_hw"):
        vision.triplet_attention(X, *four, norm_hw=identity)


def test_a_convolution_that_does_not_pad_is_refused():
    shrinking = maps.conv(jnp.ones((3, 3, 2, 1)), padding=0)
    conv = maps.conv(jnp.ones((3, 3, 2, 1)))
    with pytest.raises(ValueError, match=r"conv_hc must return \[\*B, H, C, 1\] = \[2, 6, 32, 1\]"):
        vision.triplet_attention(IMAGE, conv, identity, shrinking, identity)


def test_entries_that_tie_for_the_maximum_of_a_row_share_its_gradient():
    weights = maps.conv(jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1))
    nothing = maps.conv(jnp.zeros((1, 1, 2, 1)))

    def loss(x):
        return jnp.sum(vision.triplet_attention_gate(x, nothing, identity, weights, identity))

    x = jnp.zeros((1, 1, 4, 1)).at[0, 0, :2].set(1.0)  # two of four columns tie at 1
    gradient = np.asarray(jax.jit(jax.grad(loss))(x))[0, 0, :, 0]
    slope = 4 * sigmoid(1) * sigmoid(-1) / 2  # four places, the mean of two gates
    chex.assert_trees_all_close(gradient, np.array([slope / 2, slope / 2, 0, 0]))


def test_a_step_of_training_weighs_one_hundredth_in_the_statistics_of_triplet_attention():
    """Every plane is 1 before the normalisation: mean 1, variance 0."""
    settings = {"use_bias": True, "kernel_init": flax_linen.initializers.zeros}
    settings["bias_init"] = flax_linen.initializers.ones
    module = linen.TripletAttention(use_running_average=False, **settings)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGE)
    training = functools.partial(module.apply, mutable=["batch_stats"])
    _, updated = jax.jit(training)(variables, IMAGE)
    other = nnx.TripletAttention(rngs=flax_nnx.Rngs(0), **settings)
    flax_nnx.jit(lambda module: module(IMAGE))(other)
    expected = {"mean": jnp.array([0.01]), "var": jnp.array([0.99])}
    for plane in ("cw", "hc", "hw"):
        norm = getattr(other, f"norm_{plane}")
        for found in (
            updated["batch_stats"][f"norm_{plane}"],
            {"mean": norm.mean[...], "var": norm.var[...]},
        ):
            chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_triplet_attention_in_training_normalises_by_the_batch():
    module = linen.TripletAttention(use_running_average=False)
    variables = random_variables("triplet_attention", 32, dtype=np.float32, module=module)
    training = functools.partial(module.apply, mutable=["batch_stats"])
    actual, _ = jax.jit(training)(variables, IMAGE)
    bound = maps_of("triplet_attention", variables)
    for plane in ("cw", "hc", "hw"):
        p = variables["params"][f"norm_{plane}"]

        def by_the_batch(z, p=p):
            centred = z - jnp.mean(z)
            return centred / jnp.sqrt(jnp.mean(centred**2) + 1e-5) * p["scale"][0] + p["bias"][0]

        bound[f"norm_{plane}"] = by_the_batch
    expected = call(vision.triplet_attention, IMAGE, **bound)
    assert_close(actual, expected, FORWARD["float32"])


def test_triplet_attention_asks_for_the_phase():
    with pytest.raises(ValueError, match="TripletAttention: use_running_average must be given"):
        initial(linen.TripletAttention(), 8)


# Spatial group-wise enhancement.


def test_spatial_group_enhance_by_hand():
    # The means are (3, -1), the likeness 3 · x - 1 · (-1): 4, 7, 10, 19. Its deviations are
    # -6, -3, 0, 9, and the unbiased variance 126 / 3 = 42.
    y = call(vision.spatial_group_enhance, X, jnp.array([2.0]), jnp.array([0.5]))
    expected = 6 * sigmoid(2 * 9 / (math.sqrt(42) + 1e-5) + 0.5)
    assert float(y[0, 1, 1, 0]) == pytest.approx(expected, rel=1e-6)
    expected = -sigmoid(2 * -6 / (math.sqrt(42) + 1e-5) + 0.5)
    assert float(y[0, 0, 0, 1]) == pytest.approx(expected, rel=1e-6)


def test_a_constant_image_has_the_gate_of_the_bias_and_a_finite_gradient():
    scale, bias = jnp.array([2.0]), jnp.array([0.5])

    def gate(x):
        return vision.spatial_group_enhance_gate(x, scale, bias)

    constant = np.full((1, 4, 4, 8), 0.5, np.float32)
    expected = np.full((1, 4, 4, 8), sigmoid(0.5))
    assert_close(jax.jit(gate)(constant), expected, FORWARD["float32"])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(gate(x)[0, 0])))
    chex.assert_tree_all_finite([gradient(constant), gradient(0 * constant)])


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_what_is_not_finite_is_seen_in_its_whole_group_and_in_no_other(number):
    x = IMAGE.copy()
    x[0, 1, 2, 9] = number
    gate = call(vision.spatial_group_enhance_gate, x, jnp.full(4, 2.0), jnp.full(4, 0.5))
    finite = np.isfinite(np.asarray(gate).reshape(2, 30, 4, 8))
    expected = np.array([[True, False, True, True], [True] * 4])[:, None, :, None]
    chex.assert_trees_all_equal(finite, np.broadcast_to(expected, finite.shape))


def test_spatial_group_enhance_is_stable_on_a_small_deviation_beside_a_large_mean():
    x = (1000 + 0.1 * RNG.normal(size=(1, 8, 8, 16))).astype(np.float32)
    p = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    expected = oracles.spatial_group_enhance(np.asarray(x, np.float64), p)
    y = call(vision.spatial_group_enhance, x, **p)
    assert_close(y, expected, 1e-3)  # x is rounded: 6e-5


def test_spatial_group_enhance_starts_with_one_gate_for_all_and_two_parameters_per_group():
    module = linen.SpatialGroupEnhance()
    assert count(initial(module, 64)) == 2 * 64
    x = np.concatenate([IMAGE, IMAGE], axis=-1)
    assert_close(as_made(module, x), x * sigmoid(1.0), FORWARD["float32"])


def test_channels_that_are_not_a_multiple_of_the_groups_are_refused():
    message = r"SpatialGroupEnhance: C must be a multiple of groups = 64, got C = 100"
    with pytest.raises(ValueError, match=message):
        nnx.SpatialGroupEnhance(100, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        initial(linen.SpatialGroupEnhance(), 100)
    with pytest.raises(ValueError, match=r"multiple of groups = 5, got C = 32"):
        vision.spatial_group_enhance(IMAGE, jnp.ones(5), jnp.ones(5))
    with pytest.raises(ValueError, match=r"scale and bias must both be \[G\], got \[4\] and \[8\]"):
        vision.spatial_group_enhance(IMAGE, jnp.ones(4), jnp.ones(8))
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        vision.spatial_group_enhance(IMAGE, jnp.ones(0), jnp.ones(0))


def test_one_place_has_no_deviation_to_divide_by():
    with pytest.raises(ValueError, match="at least two places, got H · W = 1 · 1"):
        vision.spatial_group_enhance(jnp.ones((2, 1, 1, 8)), jnp.ones(4), jnp.ones(4))
    two = jax.eval_shape(
        vision.spatial_group_enhance, jnp.ones((2, 1, 2, 8)), jnp.ones(4), jnp.ones(4)
    )
    chex.assert_shape(two, (2, 1, 2, 8))


# Shuffle attention.


def test_shuffle_attention_by_hand():
    # One group of two channels: -1 is judged by its mean, (1, 2, 3, 6) by its places.
    values = (2.0, 0.5, 3.0, 0.25, 0.5, -1.0)
    y = call(vision.shuffle_attention, X[..., ::-1], *(jnp.array([value]) for value in values))
    standard = (6 - 3) / math.sqrt(14 / 4 + 1e-5)
    assert float(y[0, 1, 1, 0]) == pytest.approx(-sigmoid(2 * -1 + 0.5), rel=1e-6)
    expected = 6 * sigmoid(0.5 * (3 * standard + 0.25) - 1)
    assert float(y[0, 1, 1, 1]) == pytest.approx(expected, rel=1e-6)


def test_the_shuffle_interleaves_the_halves_of_all_channels():
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 1, 8)
    y = call(vision.shuffle_attention, x, *[jnp.zeros(1)] * 6)
    chex.assert_trees_all_equal(2 * y[0, 0, 0], np.array([0, 4, 1, 5, 2, 6, 3, 7]))


@pytest.mark.parametrize(("channels", "groups"), [(24, 8), (64, 64), (36, 12)])
def test_groups_that_have_no_halves_are_refused(channels, groups):
    message = rf"C must be a multiple of 2 · groups = {2 * groups}, got C = {channels}\."
    with pytest.raises(ValueError, match=message):
        nnx.ShuffleAttention(channels, groups=groups, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        initial(linen.ShuffleAttention(groups=groups), channels)


def test_vectors_that_do_not_fit_the_image_or_each_other_are_refused():
    five, four = jnp.zeros(5), jnp.zeros(4)
    with pytest.raises(ValueError, match=r"C must be a multiple of 2 P = 2 · 5, got C = 32"):
        vision.shuffle_attention(IMAGE, five, five, five, five, five, five)
    with pytest.raises(ValueError, match=r"must all be \[P\], got \[\[5\], \[5\], \[4\], \[5\]"):
        vision.shuffle_attention(IMAGE, five, five, four, five, five, five)


def test_shuffle_attention_starts_with_one_gate_for_all_and_three_c_over_g_parameters():
    module = linen.ShuffleAttention()
    assert count(initial(module, 256)) == 3 * 256 // 64
    y = as_made(module, np.arange(256, dtype=np.float32).reshape(1, 1, 1, 256))
    order = np.arange(256).reshape(1, 1, 1, 2, 128).swapaxes(-2, -1).reshape(y.shape)
    assert_close(y, order * sigmoid(1.0), FORWARD["float32"])


def test_groups_share_their_weights_and_do_not_see_each_other():
    moved = np.roll(IMAGE, -8, axis=-1)
    first = np.arange(32) < 8
    for name in ("shuffle_attention", "efficient_multi_scale_attention"):
        bound = maps_of(name, random_variables(name, 32, dtype=np.float32))
        gate = jax.jit(functools.partial(getattr(vision, f"{name}_gate"), **bound))
        expected = np.asarray(gate(IMAGE))
        assert_close(gate(moved), np.roll(expected, -8, axis=-1), FORWARD["float32"])
        other = np.asarray(gate(IMAGE + first))
        assert_close(other[..., 8:], expected[..., 8:], FORWARD["float32"])


def test_one_place_leaves_the_spatial_half_of_shuffle_attention_a_constant_gate():
    variables = random_variables("shuffle_attention", 32, dtype=np.float32)
    bound = maps_of("shuffle_attention", variables)
    x = IMAGE[:, :1, :1]
    gates = (call(vision.shuffle_attention_gate, i, **bound) for i in (x, 3 * x))
    one, other = (np.asarray(gate).reshape(2, 4, 2, 4) for gate in gates)
    chex.assert_trees_all_equal(one[:, :, 1], other[:, :, 1])
    assert (one[:, :, 0] != other[:, :, 0]).all()


# Efficient multi-scale attention.


def test_efficient_multi_scale_attention_by_hand():
    # Groups of one channel, so that each softmax is 1. Rows and columns are mixed to 0, both gates
    # are 1/2, and the first view is x / 4 before it is normalised; the second is x.
    pointwise = maps.dense(jnp.zeros((1, 1)))
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1
    given = (pointwise, jnp.array([2.0]), jnp.array([-4.0]), maps.conv(kernel))
    y = call(vision.efficient_multi_scale_attention, X, *given)
    first = 2 * (3 / 4) / math.sqrt(14 / 4 / 16 + 1e-5) - 4
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * sigmoid(first + 6), rel=1e-6)
    assert float(y[0, 1, 1, 1]) == pytest.approx(-sigmoid(-4 - 1), rel=1e-6)


def test_its_convolution_does_not_mix_groups():
    # Everything but the convolution is off; the kernel sums all channels of a group.
    bound = {
        "pointwise": maps.dense(jnp.zeros((2, 2))),
        "norm_scale": jnp.zeros(2),
        "norm_bias": jnp.zeros(2),
        "conv": maps.conv(jnp.ones((1, 1, 2, 2))),
    }
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4) / 8
    gate = call(vision.efficient_multi_scale_attention_gate, x, **bound)
    sums = (x[..., ::2] + x[..., 1::2]).repeat(2, axis=-1)
    assert_close(gate, 1 / (1 + np.exp(-sums)), FORWARD["float32"])


def test_its_parameters_are_those_of_one_group():
    part = 64 // 32
    assert count(initial(linen.EfficientMultiScaleAttention(), 64)) == 10 * part**2 + 4 * part


@pytest.mark.parametrize(("channels", "groups"), [(16, 32), (40, 32), (32, 5)])
def test_too_few_or_odd_channels_for_the_groups_are_refused(channels, groups):
    message = rf"C must be a multiple of groups = {groups}, got C = {channels}\."
    with pytest.raises(ValueError, match=message):
        nnx.EfficientMultiScaleAttention(channels, groups=groups, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        initial(linen.EfficientMultiScaleAttention(groups=groups), channels)


def test_its_function_names_the_argument_that_does_not_fit():
    ones = jnp.ones(4)
    pointwise, conv = maps.dense(jnp.ones((4, 4))), maps.conv(jnp.ones((3, 3, 4, 4)))
    apply = vision.efficient_multi_scale_attention
    with pytest.raises(ValueError, match=r"C must be a multiple of P = 5, got C = 32"):
        apply(IMAGE, pointwise, jnp.ones(5), jnp.ones(5), conv)
    with pytest.raises(ValueError, match=r"must both be \[P\], got \[4\] and \[5\]"):
        apply(IMAGE, pointwise, ones, jnp.ones(5), conv)
    narrow = maps.dense(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"pointwise must return .* = \[2, 11, 8, 4\], got"):
        apply(IMAGE, narrow, ones, ones, conv)
    shrinking = maps.conv(jnp.ones((3, 3, 4, 4)), padding=0)
    with pytest.raises(ValueError, match=r"conv must return .* = \[2, 8, 6, 5, 4\], got"):
        apply(IMAGE, pointwise, ones, ones, shrinking)
    with pytest.raises(ValueError, match="at least two places, got H · W = 1 · 1"):
        apply(IMAGE[:, :1, :1], pointwise, ones, ones, conv)


# All of them.


@pytest.mark.parametrize("name", NAMES)
def test_float16_images_do_not_overflow(name):
    bound = maps_of(name, random_variables(name, 32, dtype=np.float32))
    gate = jax.jit(functools.partial(getattr(vision, f"{name}_gate"), **bound))
    x = RNG.normal(60.0, 1.0, (1, 32, 32, 32)).astype(np.float16)
    assert_close(gate(x), gate(x.astype(np.float32)), FORWARD["float16"])


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_module_refuses_an_image_of_another_width(name):
    cls = {
        "spatial_group_enhance": nnx.SpatialGroupEnhance,
        "shuffle_attention": nnx.ShuffleAttention,
        "efficient_multi_scale_attention": nnx.EfficientMultiScaleAttention,
    }[name]
    module = cls(32, groups=4, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match="32 channels that the module was made for"):
        module(np.ones((1, 4, 4, 64)))
