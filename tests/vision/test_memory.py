"""What gates keep and how exactly their gradients are summed, in programs as they are compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from jax import lax

from flax_attn import nnx
from flax_attn.vision._memory import apply_gate
from flax_attn.vision._one_channel import conv_of_one, dot_of_one
from flax_attn.vision._pooling import largest
from tests.tolerances import FORWARD, GRADIENT, assert_close

SHAPE = (8, 56, 56, 256)
GATES = ("SqueezeExcite", "EffectiveSqueezeExcite", "ECA", "GlobalContext", "SimAM", "CBAM")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def build(name, dtype):
    sizes = () if name == "SimAM" else (SHAPE[-1],)
    settings = {} if name == "SimAM" else {"dtype": dtype, "rngs": flax_nnx.Rngs(0)}
    return flax_nnx.split(getattr(nnx, name)(*sizes, **settings))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA for CPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GATES)
def test_a_gate_takes_little_memory_besides_the_image(name, dtype):
    graph, state = build(name, jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(SHAPE, dtype)
    run = jax.jit(lambda state, x: flax_nnx.merge(graph, state)(x))
    with jax.numpy_dtype_promotion("standard"):  # Flax's layer norm of float32 asks for it
        memory = run.lower(state, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * x.size * x.dtype.itemsize


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA for CPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["SqueezeExcite", "ECA"])
def test_the_gradient_of_a_gate_takes_little_memory_too(name, dtype):
    graph, state = build(name, jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(SHAPE, dtype)

    def run(state, x, cotangent):
        y, pull = jax.vjp(lambda state, x: flax_nnx.merge(graph, state)(x), state, x)
        return y, pull(cotangent)

    memory = jax.jit(run).lower(state, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * x.size * x.dtype.itemsize


@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 64, 64, 1)])
def test_the_gradient_of_a_gate_is_summed_in_float32(shape):
    """JAX's transpose of a broadcast adds 4,096 ones of bfloat16 up to 1,024 on CPUs."""
    x = jnp.ones((2, 64, 64, 3), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda g: jnp.sum(apply_gate(x, g), dtype=jnp.float32)))
    expected = x.size / np.prod(shape)
    np.testing.assert_array_equal(gradient(jnp.ones(shape, jnp.bfloat16)), expected)


LAST = {  # the parameter that the whole image moves
    "BAM": ("expand", "bias"),
    "CBAM": ("channel", "expand", "kernel"),
    "CoordinateAttention": ("expand_height", "bias"),
    "GlobalContext": ("expand", "bias"),
    "PolarizedAttention": ("channel_expand", "kernel"),
    "PositionAttention": ("gamma",),
    "SCSE": ("expand", "bias"),
    "SqueezeExcite": ("expand", "kernel"),
    "TripletAttention": ("norm_cw", "bias"),
}


@pytest.mark.parametrize("name", LAST)
def test_modules_in_bfloat16_sum_their_gradients_in_float32(name):
    """A sum of 1,024 numbers in bfloat16 is 10 to 50 % too small."""
    x = 1 + jnp.asarray(np.random.default_rng(0).uniform(0, 0.1, (1, 32, 32, 16)), jnp.float32)

    def gradient(dtype):
        cls, settings = getattr(nnx, name), {"dtype": dtype, "rngs": flax_nnx.Rngs(0)}
        module = cls(**settings) if name == "TripletAttention" else cls(16, **settings)
        module.eval()
        graph, state = flax_nnx.split(module)
        total = lambda state: jnp.sum(
            flax_nnx.merge(graph, state)(x.astype(dtype)), dtype="float32"
        )
        with jax.numpy_dtype_promotion("standard"):
            found = jax.jit(jax.grad(total, allow_int=True))(state)
        return flax_nnx.to_pure_dict(found)

    def leaf(tree):
        for key in LAST[name]:
            tree = tree[key]
        return tree

    assert_close(leaf(gradient(jnp.bfloat16)), leaf(gradient(jnp.float32)), 0.05)


def test_gates_are_multiplied_and_have_the_derivatives_of_the_product(x64):
    arrays = [jnp.asarray(draw(*shape)) for shape in ((2, 3, 4, 5), (2, 3, 1, 5), (2, 1, 4, 5))]
    tangents = [jnp.asarray(draw(*a.shape, seed=1)) for a in arrays]
    product = lambda x, g, h: x * g * h
    for transform in (
        lambda f: f(*arrays),
        lambda f: jax.jvp(f, arrays, tangents),
        lambda f: jax.vjp(f, *arrays)[1](tangents[0]),
        lambda f: jax.vmap(f)(*arrays),
        lambda f: jax.hessian(lambda g: jnp.sum(f(arrays[0], g, arrays[2]) ** 2))(arrays[1]),
    ):
        for actual, expected in zip(
            jax.tree.leaves(transform(apply_gate)), jax.tree.leaves(transform(product)), strict=True
        ):
            assert_close(actual, expected, GRADIENT["float64"])


@pytest.mark.parametrize("axis", [-1, (-3, -2)])
def test_ties_share_the_gradient_of_the_maximum(axis, x64):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 4, 5, 3)), jnp.float64)
    found = largest(x, axis)
    np.testing.assert_array_equal(found, x.max(axis))
    cotangent = jnp.asarray(draw(*found.shape))
    (expected,) = jax.vjp(lambda x: jnp.max(x, axis), x)[1](cotangent)
    (actual,) = jax.vjp(lambda x: largest(x, axis), x)[1](cotangent)
    assert_close(actual, expected, GRADIENT["float64"])


def test_a_dot_product_to_one_channel_is_that_of_lax():
    x, kernel = (jnp.asarray(draw(*s), jnp.bfloat16) for s in ((2, 6, 5, 32), (32, 1)))
    numbers = (((3,), (0,)), ((), ()))
    cotangent = jnp.asarray(draw(2, 6, 5, 1), jnp.bfloat16)
    y, pull = jax.vjp(lambda x, k: dot_of_one(x, k, numbers, precision=None), x, kernel)
    wide = lambda x, k: lax.dot_general(x, k, numbers)
    expected, wide_pull = jax.vjp(wide, *(a.astype(jnp.float32) for a in (x, kernel)))
    assert y.dtype == jnp.bfloat16
    assert_close(y, expected, FORWARD["bfloat16"])
    for actual, gradient in zip(
        pull(cotangent), wide_pull(cotangent.astype(jnp.float32)), strict=True
    ):
        assert_close(actual, gradient, GRADIENT["bfloat16"])


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (7, 7), (5, 3)])
def test_a_convolution_to_one_channel_is_that_of_lax(sizes, x64):
    x, kernel = jnp.asarray(draw(2, 6, 9, 2)), jnp.asarray(draw(*sizes, 2, 1))
    padding = [(size // 2, size // 2) for size in sizes]
    settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    ours = functools.partial(conv_of_one, window_strides=(1, 1), padding=padding, **settings)
    theirs = functools.partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding=padding, **settings
    )
    cotangent = jnp.asarray(draw(2, 6, 9, 1))
    for transform in (
        lambda f: f(x, kernel),
        lambda f: jax.vjp(f, x, kernel)[1](cotangent),
        lambda f: jax.jvp(f, (x, kernel), (x + 1, kernel - 1)),
        lambda f: jax.vmap(f, in_axes=(0, None))(x[:, None], kernel),
    ):
        for actual, expected in zip(
            jax.tree.leaves(transform(ours)), jax.tree.leaves(transform(theirs)), strict=True
        ):
            assert_close(actual, expected, GRADIENT["float64"])


@pytest.mark.parametrize(
    "options",
    [{"strides": 2}, {"kernel_dilation": 2, "padding": 2}, {"preferred_element_type": "float32"}],
    ids=lambda options: next(iter(options)),
)
def test_a_convolution_with_other_options_is_left_to_lax(options):
    x = jnp.asarray(draw(2, 6, 9, 2), jnp.bfloat16)
    settings = {"padding": 1, "use_bias": False, "dtype": jnp.bfloat16, **options}
    conv = functools.partial(flax_nnx.Conv, 2, 1, (3, 3), **settings)
    plain = conv(rngs=flax_nnx.Rngs(0))
    ours = conv(conv_general_dilated=conv_of_one, rngs=flax_nnx.Rngs(0))
    expected = plain(x)
    assert ours(x).dtype == expected.dtype
    np.testing.assert_array_equal(ours(x), expected)


def test_a_dot_product_in_another_dtype_is_left_to_lax():
    x, kernel = (jnp.asarray(draw(*s), jnp.bfloat16) for s in ((2, 6, 5, 32), (32, 1)))
    numbers = (((3,), (0,)), ((), ()))
    wide = dot_of_one(x, kernel, numbers, preferred_element_type=jnp.float32)
    expected = lax.dot_general(x, kernel, numbers, preferred_element_type=jnp.float32)
    np.testing.assert_array_equal(wide, expected)
