"""Maps: the numbers, the dtypes, and passing through JAX's transformations as arguments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen

from flax_attn import maps
from tests.oracles.vision import conv2d
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape)


def flax_conv(x, kernel, bias, **options):
    layer = flax_linen.Conv(kernel.shape[-1], kernel.shape[:-2], **options)
    return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)


ALL = {
    "dense": (maps.dense(draw(6, 4), draw(4)), (2, 5, 6)),
    "dense to heads": (maps.dense(draw(6, 2, 3), draw(2, 3)), (2, 5, 6)),
    "dense from heads": (maps.dense(draw(2, 3, 4), axes=2), (5, 2, 3)),
    "conv": (maps.conv(draw(3, 3, 6, 4), draw(4), strides=2, dilation=2), (2, 9, 8, 6)),
    "grouped conv": (maps.conv(draw(3, 1, 2, 6), groups=3), (2, 7, 5, 6)),
    "depthwise conv": (maps.depthwise_conv(draw(5, 3, 1, 6), draw(6)), (2, 7, 5, 6)),
    "conv1d": (maps.conv1d(draw(5, 6, 4), draw(4), dilation=2), (2, 11, 6)),
    "batch norm": (maps.batch_norm(draw(6), draw(6) ** 2, draw(6), draw(6)), (2, 7, 5, 6)),
    "layer norm": (maps.layer_norm(draw(6), draw(6)), (2, 7, 6)),
    "group norm": (maps.group_norm(draw(6), draw(6), num_groups=3), (2, 7, 5, 6)),
}
every_map = pytest.mark.parametrize("name", ALL)


def bound(name, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), ALL[name][0])


@every_map
def test_a_map_is_a_pytree_of_its_arrays(name):
    make = bound(name, jnp.float32)
    leaves, structure = jax.tree.flatten(make)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert jax.tree.structure(bound(name, jnp.float32)) == structure
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(f, x):
        return f(x)

    x = jnp.asarray(draw(*ALL[name][1]), jnp.float32)
    scaled = [jax.tree.map(lambda a, factor=factor: factor * a, make) for factor in (1.0, 2.0)]
    for f in scaled:
        assert_close(apply(f, x), f(x), FORWARD["float32"])
    gradient = jax.eval_shape(jax.grad(lambda f: jnp.sum(f(x) ** 2)), make)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, make)
    stacked = jax.tree.map(lambda *a: np.stack(a), *scaled)
    both = jax.jit(jax.vmap(lambda f: f(x)))(stacked)
    assert_close(both, np.stack([apply(f, x) for f in scaled]), FORWARD["float32"])


@every_map
@pytest.mark.parametrize(
    ("dtype", "weights"),
    [
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "bfloat16"),
        ("float64", "float32"),
    ],
)
def test_the_output_has_the_inputs_dtype_and_float32_statistics(name, dtype, weights, x64):
    make = bound(name, weights)
    x = np.asarray(3 + draw(*ALL[name][1])).astype(jnp.dtype(dtype))
    run = jax.jit(lambda f, x: f(x))
    actual = run(make, x)
    chex.assert_type(actual, dtype)
    rounded = jnp.dtype(weights if "norm" in name else dtype)
    wide = jax.tree.map(lambda a: np.asarray(a).astype(rounded).astype(np.float64), make)
    assert_close(actual, run(wide, x.astype(np.float64)), FORWARD[dtype])


@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions_equal_loops(dilation, x64):
    x, kernel, bias = draw(2, 7, 6, 3), draw(3, 5, 3, 4), draw(4)
    expected = conv2d(x, {"kernel": kernel, "bias": bias}, dilation)
    actual = maps.conv(jnp.asarray(kernel), jnp.asarray(bias), dilation=dilation)(jnp.asarray(x))
    assert_close(actual, expected, FORWARD["float64"])
    one = maps.conv1d(jnp.asarray(kernel[0]), jnp.asarray(bias), dilation=dilation)
    expected = conv2d(x[:, :1], {"kernel": kernel[:1], "bias": bias}, dilation)[:, 0]
    assert_close(one(jnp.asarray(x[:, 0])), expected, FORWARD["float64"])


def test_strides_pad_symmetrically_and_groups_equal_flax():
    shapes = (2, 8, 6, 6), (3, 3, 2, 6), (6,)
    x, kernel, bias = (draw(*shape).astype(np.float32) for shape in shapes)
    expected = flax_conv(
        x, kernel, bias, strides=(2, 2), padding=((1, 1), (1, 1)), feature_group_count=3
    )
    actual = maps.conv(kernel, bias, strides=2, groups=3)(x)
    assert_close(actual, expected, FORWARD["float32"])
    same = maps.conv(kernel, bias, strides=2, groups=3, padding=[(0, 1), (0, 1)])(x)
    expected = flax_conv(x, kernel, bias, strides=(2, 2), padding="SAME", feature_group_count=3)
    assert_close(same, expected, FORWARD["float32"])
    depthwise = jnp.asarray(draw(3, 3, 1, 6), jnp.float32)
    expected = flax_conv(x, depthwise, bias, padding=((1, 1), (1, 1)), feature_group_count=6)
    assert_close(maps.depthwise_conv(depthwise, bias)(x), expected, FORWARD["float32"])


def test_norms_equal_their_formulas(x64):
    x, scale, bias = 1000 + 0.1 * draw(2, 5, 4, 6), draw(6), draw(6)
    mean, var = draw(6), draw(6) ** 2
    actual = maps.batch_norm(*(jnp.asarray(a) for a in (mean, var, scale, bias)))(jnp.asarray(x))
    assert_close(actual, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, FORWARD["float64"])
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    actual = maps.layer_norm(jnp.asarray(scale), jnp.asarray(bias))(jnp.asarray(x))
    assert_close(actual, normal * scale + bias, 1e-9)  # of a mean 10⁴ deviations large
    groups = x.reshape(2, 20, 3, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    normal = (centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    actual = maps.group_norm(jnp.asarray(scale), jnp.asarray(bias), num_groups=3)(jnp.asarray(x))
    assert_close(actual, normal * scale + bias, 1e-9)


def test_a_small_deviation_beside_a_large_mean_survives_in_float32():
    x = jnp.asarray(1000 + 0.1 * draw(64, 256), jnp.float32)
    assert abs(float(jnp.std(maps.layer_norm()(x))) - 1) < 1e-2


def test_by_hand_a_dense_map():
    f = maps.dense(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([10.0, 20.0]))
    assert f(jnp.array([1.0, 1.0])).tolist() == [14.0, 26.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: maps.dense(draw(6, 4), **options),
        lambda **options: maps.conv1d(draw(3, 6, 4), **options),
        lambda **options: maps.conv(draw(1, 3, 6, 4), **options),
        lambda **options: maps.depthwise_conv(draw(1, 3, 1, 6), **options),
    ],
)
def test_precision_reaches_the_product(make):
    x = jnp.ones((2, 5, 5, 6))
    assert "HIGHEST" in str(jax.make_jaxpr(make(precision="highest"))(x))
    assert "HIGHEST" not in str(jax.make_jaxpr(make())(x))
