"""The token mixers: claims, options, and traps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from flax_attn import linen, maps, nnx, vision
from tests.mechanisms import merged, random_variables
from tests.oracles import vision as oracles
from tests.oracles.vision.token_mixers import gelu as gelu_in_float64
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(0.3, 1.5, (2, 6, 4, 16)).astype(np.float32)
WIDE = np.asarray(X, np.float64)


def apply(module, x=X, like=None):
    """The output, what was sown, and the parameters, which are random (as `like` would have)."""
    variables = random_variables("", x.shape[-1], dtype=np.float32, module=like or module)
    run = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))
    y, sown = run(variables, x)
    return y, sown.get("intermediates", {}), merged(variables)


def call(function, x, *given, **bound):
    """What a function makes of an image, in one program."""
    return jax.jit(lambda x: function(x, *given, **bound))(x)


def itself(x):
    return x


def dense(*shape):
    return maps.dense(jnp.asarray(RNG.normal(size=shape) / shape[0], jnp.float32))


def joined(*shape):
    return maps.dense(jnp.asarray(RNG.normal(size=shape), jnp.float32), axes=2)


# Cross-covariance attention


def xca(x, num_heads=2, temperature=None, **options):
    channels = x.shape[-1]
    split = maps.dense(jnp.eye(channels, dtype=x.dtype).reshape(channels, num_heads, -1))
    join = maps.dense(jnp.eye(channels, dtype=x.dtype).reshape(num_heads, -1, channels), axes=2)
    temperature = jnp.ones(num_heads) if temperature is None else temperature
    return vision.cross_covariance_attention(x, split, split, split, join, temperature, **options)


def test_cross_covariance_weights_are_cosines_of_channels_by_the_temperature():
    """Channels (1, 0) and (3, 4) over two places: cosines 1, 0.6; 0.6, 1."""
    x = np.array([[[[1.0, 3.0], [0.0, 4.0]]]], np.float32)
    y, weights = call(xca, x, 1, jnp.array([5.0]), return_weights=True)
    off = 1 / (1 + np.exp(5 * 0.4))
    chex.assert_trees_all_close(weights[0, 0], np.array([[1 - off, off], [off, 1 - off]]))
    chex.assert_trees_all_close(y[0, 0, 1], np.array([4 * off, 4 * (1 - off)]))


def test_cross_covariance_weights_do_not_depend_on_the_scale_of_the_image():
    _, weights = call(xca, X, return_weights=True)
    _, larger = call(xca, 1000 * X, return_weights=True)
    assert_close(larger, weights, FORWARD["float32"])
    assert_close(np.sum(weights, axis=-1), np.ones(weights.shape[:-1]), FORWARD["float32"])


ZEROS_IN_A_CHANNEL = np.where(np.arange(16) == 3, 0, X)


def test_cross_covariance_of_a_channel_of_zeros_has_a_finite_gradient():
    y, weights = call(xca, ZEROS_IN_A_CHANNEL, return_weights=True)
    chex.assert_trees_all_close(weights[:, 0, 3], 1 / 8)  # it likes all alike
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(xca(x) ** 2)))(np.zeros_like(X))
    chex.assert_tree_all_finite((y, gradient))


def test_cross_covariance_refuses_what_is_no_temperature_and_no_length():
    with pytest.raises(TypeError, match="temperature must be floating point, got int32"):
        xca(X, temperature=jnp.ones(2, jnp.int32))
    with pytest.raises(ValueError, match=r"epsilon must be above 0, got 0\.0"):
        xca(X, epsilon=0.0)


def test_the_epsilon_of_cross_covariance_may_be_traced():
    y = jax.jit(lambda x, epsilon: xca(x, epsilon=epsilon))(X, 1e-2)
    assert_close(y, call(xca, X, epsilon=1e-2), FORWARD["float32"])


def test_cross_covariance_of_a_channel_of_zeros_has_finite_second_derivatives():
    slope = jax.grad(lambda x: jnp.sum(jnp.square(xca(x))))
    x = ZEROS_IN_A_CHANNEL
    _, curvature = jax.jit(lambda x: jax.jvp(slope, (x,), (jnp.ones_like(x),)))(x)
    chex.assert_tree_all_finite(curvature)


def test_cross_covariance_lengths_do_not_overflow_in_float16():
    x = np.full((1, 32, 32, 4), 30.0, np.float16)  # a squared length of 9e5
    y, weights = call(xca, x, return_weights=True)
    chex.assert_type(weights, jnp.float32)
    chex.assert_trees_all_close(weights, 0.5, rtol=1e-3)
    chex.assert_trees_all_close(y, 30.0, rtol=1e-3)


def test_cross_covariance_commutes_with_any_order_of_the_places():
    tokens = X.reshape(2, 1, 24, 16)
    order = RNG.permutation(24)
    expected = np.asarray(call(xca, tokens))[:, :, order]
    assert_close(call(xca, tokens[:, :, order]), expected, FORWARD["float32"])


# Spatial-reduction attention


def test_pvt_v2_pools_to_seven_by_seven_whatever_the_size():
    gelu = functools.partial(jax.nn.gelu, approximate=False)
    module = linen.SpatialReductionAttention(
        num_heads=4, reduction=1, pool_size=7, activation_fn=gelu
    )
    for shape in ((2, 6, 4), (1, 9, 15)):  # bins overlap in the one, and differ in the other
        x = RNG.normal(size=(*shape, 16)).astype(np.float32)
        y, _, p = apply(module, x)
        expected = oracles.spatial_reduction_attention(
            np.asarray(x, np.float64), p, pool_size=7, activation=gelu_in_float64
        )
        assert_close(y, expected, FORWARD["float32"])


def test_spatial_reduction_by_one_is_multi_head_attention_without_a_norm():
    y, _, p = apply(linen.SpatialReductionAttention(num_heads=4, reduction=1))
    assert set(p) == {"query", "key", "value", "out"}
    assert_close(y, oracles.spatial_reduction_attention(WIDE, p), FORWARD["float32"])


def test_spatial_reduction_leaves_out_places_beyond_the_last_window():
    module = linen.SpatialReductionAttention(num_heads=4, reduction=4)
    variables = random_variables("", 16, dtype=np.float32, module=module)
    changed = X.copy()
    changed[:, 4:] = 7  # rows 4 and 5 of 6
    y, other = (np.asarray(jax.jit(module.apply)(variables, x)) for x in (X, changed))
    assert_close(other[:, :4], y[:, :4], FORWARD["float32"])


def test_spatial_reduction_to_nothing_is_refused():
    module = linen.SpatialReductionAttention(reduction=8)
    with pytest.raises(ValueError, match=r"at least one place.*got \[2, 0, 0, 16\] from \[2, 6, 4"):
        module.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="reduction must be at least 1, got 0"):
        linen.SpatialReductionAttention(reduction=0).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="pool_size must be at least 1, got 0"):
        linen.SpatialReductionAttention(pool_size=0).init(jax.random.key(0), X)


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("SpatialReductionAttention", {"num_heads": 4}, (2, 4, 24, 6)),
        ("AttentionPool", {"num_heads": 4}, (2, 4, 1, 25)),
    ],
)
def test_attention_weights_are_sown_on_request(name, settings, shape):
    module = getattr(linen, name)(**settings)
    variables = jax.jit(module.init)(jax.random.key(0), X)
    plain = functools.partial(module.apply, mutable=["intermediates"])
    assert not jax.eval_shape(plain, variables, X)[1]
    asked = functools.partial(module.apply, sow_weights=True, mutable=["intermediates"])
    _, sown = jax.jit(asked)(variables, X)
    (weights,) = sown["intermediates"]["attention_weights"]
    chex.assert_shape(weights, shape)
    assert_close(np.sum(weights, axis=-1), np.ones(shape[:-1]), FORWARD["float32"])
    size = {"input_size": (6, 4)} if name == "AttentionPool" else {}
    made = getattr(nnx, name)(16, **size, **settings, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"attention_weights can be sown only inside nnx\.capture"):
        jax.eval_shape(lambda x: made(x, sow_weights=True), X)
    capture = flax_nnx.capture(lambda m, x: m(x, sow_weights=True), flax_nnx.Intermediate)
    _, captured = flax_nnx.eval_shape(capture, made, X)
    assert [w.shape for w in jax.tree.leaves(captured)] == [shape]


# Attention pooling


def test_attention_pool_without_positions_does_not_know_where_things_are():
    split, join, positions = dense(16, 4, 4), joined(4, 4, 10), np.zeros((25, 16), np.float32)
    pool = functools.partial(
        call,
        vision.attention_pool,
        positions=positions,
        query=split,
        key=dense(16, 4, 4),
        value=split,
        out=join,
    )
    y = pool(X)
    chex.assert_shape(y, (2, 10))
    assert_close(pool(X[:, ::-1, ::-1]), y, 3 * FORWARD["float32"])
    positions = np.where(np.arange(25)[:, None] == 1, np.float32(9), positions)
    assert not np.allclose(pool(X, positions=positions), y, rtol=1e-2)


def test_attention_pool_of_another_size_is_refused():
    split, join = dense(16, 4, 4), joined(4, 4, 10)
    with pytest.raises(ValueError, match=r"\[1 \+ H · W, C\] = \[25, 16\], got \[50, 16\]"):
        vision.attention_pool(X, jnp.zeros((50, 16)), split, split, split, join)
    made = nnx.AttentionPool(16, (4, 6), rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(H, W\) = \(4, 6\).*got \[2, 6, 4, 16\]"):
        made(X)  # as many places, in other rows


def test_attention_pool_takes_the_mean_in_float32():
    def mean(x):
        seen = []
        positions, join = jnp.zeros((4097, 4), x.dtype), maps.dense(jnp.ones((2, 2, 4)), axes=2)
        split = maps.dense(jnp.ones((4, 2, 2)))
        query = lambda t: seen.append(t) or split(t)
        vision.attention_pool(x, positions, query, split, split, join)
        return seen[0]

    assert (jax.jit(mean)(np.ones((1, 64, 64, 4), jnp.bfloat16)) == 1).all()


# Separable attention


def test_separable_attention_applies_its_activation_to_the_values():
    """Popular copies forget the ReLU on the value branch."""
    x = np.array([[[[-1.0], [3.0]]]], np.float32)
    score = maps.dense(jnp.zeros((1, 1)))
    y = call(vision.separable_attention, x, score, itself, itself, itself)
    chex.assert_trees_all_close(y[0, 0, :, 0], np.array([0.0, 3.0]), rtol=1e-7)


def test_patches_of_separable_attention_share_nothing_between_positions():
    module = linen.SeparableAttention(patch_size=2)
    y, sown, p = apply(module, like=linen.SeparableAttention())
    assert_close(y, oracles.separable_attention(WIDE, p, patch_size=2), FORWARD["float32"])
    (weights,) = sown["attention_weights"]
    weights = np.asarray(weights)
    for i in range(2):
        for j in range(2):
            total = weights[:, i::2, j::2].sum(axis=(1, 2, 3))
            chex.assert_trees_all_close(total, 1)
    changed = X.copy()
    changed[:, ::2, ::2] += 1
    y, other = np.asarray(y), np.asarray(apply(module, changed, like=linen.SeparableAttention())[0])
    assert_close(other[:, 1::2], y[:, 1::2], FORWARD["float32"])
    assert not np.allclose(other[:, ::2, ::2], y[:, ::2, ::2], rtol=1e-2)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of patch_size = 4, got H, W = 6, 4"):
        linen.SeparableAttention(patch_size=4).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        linen.SeparableAttention(patch_size=0).init(jax.random.key(0), X)


# Outlook attention


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (5, 3), (3, 4)])
def test_outlook_attention_of_any_stride_equals_its_oracle(kernel_size, stride):
    settings = {"num_heads": 4, "kernel_size": kernel_size, "stride": stride}
    y, sown, p = apply(linen.OutlookAttention(**settings), X[:, :5])  # the last window is cut off
    assert_close(y, oracles.outlook_attention(WIDE[:, :5], p, **settings), FORWARD["float32"])
    (weights,) = sown["attention_weights"]
    height, width, taps = -(-5 // stride), -(-4 // stride), kernel_size**2
    chex.assert_shape(weights, (2, height, width, 4, taps, taps))
    assert_close(np.sum(weights, axis=-1), np.ones(weights.shape[:-1]), FORWARD["float32"])


def test_outlook_attention_adds_up_the_windows_that_hold_a_place():
    """Equal scores: each window gives the mean of its 9 values, zeros beyond the border included.

    The corner of ones lies in 4 windows, with means 4/9, 6/9, 6/9 and 9/9.
    """
    even = maps.dense(jnp.zeros((2, 2 * 3**4)))
    x = np.ones((1, 4, 4, 2), np.float32)
    y = call(vision.outlook_attention, x, even, itself, itself, num_heads=2)
    chex.assert_trees_all_close(y[0, 0, 0], (4 + 6 + 6 + 9) / 9)


def test_outlook_attention_refuses_what_it_cannot_do():
    init = functools.partial(jax.random.key, 0)
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 1, got 2"):
        linen.OutlookAttention(kernel_size=2).init(init(), X)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        linen.OutlookAttention(stride=0).init(init(), X)
    with pytest.raises(ValueError, match=r"score must return .* = \[2, 6, 4, 162\], got"):
        vision.outlook_attention(X, itself, itself, itself, num_heads=2)


# Focal modulation


def test_focal_modulation_with_one_gate_open_sees_as_far_as_its_level():
    """Two levels of widths 3 and 5 see 1 and 3 places far; the last gate sees everything."""
    kernel = {"kernel": jnp.ones((3, 3, 1, 1))}, {"kernel": jnp.ones((5, 5, 1, 1))}
    convs = [maps.depthwise_conv(**k) for k in kernel]

    def seen_from_the_middle(level):
        def modulated(x):
            one_hot = jnp.zeros((*x.shape[:-1], 3)).at[..., level].set(1.0)
            return vision.focal_modulation(
                x,
                jnp.ones_like,
                itself,
                lambda x: one_hot,
                convs,
                itself,
                itself,
                activation_fn=itself,
            )[0, 4, 4, 0]

        gradient = jax.jit(jax.grad(modulated))(np.ones((1, 9, 9, 1), np.float32))
        return int(np.sum(np.any(np.asarray(gradient)[0, :, :, 0] != 0, axis=0)))

    assert [seen_from_the_middle(level) for level in range(3)] == [3, 7, 9]


def test_focal_modulation_has_the_exact_gelu():
    x = np.full((1, 1, 1, 1), 2, np.float32)
    gate = maps.dense(jnp.array([[0.5]]))  # of the mean alone: 1
    y = call(vision.focal_modulation, x, jnp.ones_like, itself, gate, [], itself, itself)
    chex.assert_trees_all_close(y, 2 * 0.9772498680518208)  # 2 Φ(2)


def test_the_modulator_may_be_a_mean_over_levels():
    module = linen.FocalModulation(normalize_modulator=True)
    y, sown, p = apply(module)
    expected = oracles.focal_modulation(WIDE, p, normalize_modulator=True)
    assert_close(y, expected, FORWARD["float32"])
    (gates,) = sown["level_gates"]
    chex.assert_shape(gates, (2, 6, 4, 3))


def test_focal_kernels_that_are_even_or_nothing_are_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 1, got 4"):
        linen.FocalModulation(kernel_size=4).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"kernel_growth must be even .* got 1, .* \[3, 4\]"):
        linen.FocalModulation(kernel_growth=1).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"each kernel at least 1 wide, got -2, .* \[3, 1, -1\]"):
        nnx.FocalModulation(16, num_levels=3, kernel_growth=-2, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"L \+ 1\] = \[2, 6, 4, 1\], got \[2, 6, 4, 16\]"):
        vision.focal_modulation(X, itself, itself, itself, [], itself, itself)


@pytest.mark.parametrize("part", ["modulate", "norm"])
def test_maps_of_focal_modulation_that_broadcast_are_refused(part):
    first_image = {"modulate": itself, "norm": itself, part: lambda m: m[:1]}
    modulate, norm = first_image["modulate"], first_image["norm"]
    gate = dense(X.shape[-1], 1)
    with pytest.raises(ValueError, match=rf"{part} must return .*, got \[1, 6, 4, 16\]"):
        vision.focal_modulation(X, itself, itself, gate, [], modulate, itself, norm=norm)


# The lambda layer


def test_the_content_lambda_is_that_of_linear_attention_with_softmax_keys():
    position = maps.conv(jnp.zeros((3, 3, 1, 2)))
    query, key, value = dense(16, 4 * 2), dense(16, 2), dense(16, 4)
    y = call(vision.lambda_layer, X, query, itself, key, value, itself, position)
    k = oracles.softmax(np.asarray(key(X), np.float64).reshape(2, 24, 2), axis=1)
    content = np.einsum("btk,btd->bkd", k, np.asarray(value(X), np.float64).reshape(2, 24, 4))
    q = np.asarray(query(X), np.float64).reshape(2, 6, 4, 4, 2)
    expected = np.einsum("bhwnk,bkd->bhwnd", q, content).reshape(2, 6, 4, 16)
    assert_close(y, expected, FORWARD["float32"])


def test_the_output_of_a_lambda_layer_may_have_another_width():
    """timm's fails in a reshape where its output is not as wide as its input."""
    position = maps.conv(jnp.ones((3, 3, 1, 2)))
    query, key, value = dense(16, 4 * 2), dense(16, 2), dense(16, 5)
    y = call(vision.lambda_layer, X, query, itself, key, value, itself, position)
    chex.assert_shape(y, (2, 6, 4, 20))


def test_a_lambda_layer_normalises_by_the_batch_in_training():
    module = linen.LambdaLayer(kernel_size=3, use_running_average=False)
    variables = random_variables("", 16, dtype=np.float32, module=module)
    y, _ = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))(variables, X)
    p = merged(variables)
    for name in ("query", "value"):
        projected = oracles.linear(WIDE, p[name])
        statistics = {"mean": projected.mean((0, 1, 2)), "var": projected.var((0, 1, 2))}
        p[f"{name}_norm"] = {**p[f"{name}_norm"], **statistics}
    assert_close(y, oracles.lambda_layer(WIDE, p), FORWARD["float32"])
    with pytest.raises(ValueError, match="use_running_average must be given"):
        linen.LambdaLayer().init(jax.random.key(0), X)


def test_queries_that_do_not_fall_into_heads_are_refused():
    position = maps.conv(jnp.ones((3, 3, 1, 3)))
    layers = dense(16, 8), itself, dense(16, 3), dense(16, 4), itself, position
    with pytest.raises(ValueError, match="multiple of the keys' K = 3 channels, got N · K = 8"):
        vision.lambda_layer(X, *layers)


# Heads


@pytest.mark.parametrize(
    "name",
    [
        "CrossCovarianceAttention",
        "SpatialReductionAttention",
        "AttentionPool",
        "OutlookAttention",
        "LambdaLayer",
    ],
)
def test_channels_that_do_not_fall_into_heads_are_refused(name):
    size = {"input_size": (6, 4)} if name == "AttentionPool" else {}
    for num_heads, message in ((5, "C must be a multiple of num_heads = 5, got"), (0, "least 1")):
        with pytest.raises(ValueError, match=message):
            getattr(nnx, name)(16, **size, num_heads=num_heads, rngs=flax_nnx.Rngs(0))
        phase = {"use_running_average": True} if name == "LambdaLayer" else {}
        with pytest.raises(ValueError, match=message):
            getattr(linen, name)(num_heads=num_heads, **phase).init(jax.random.key(0), X)
