"""What gates keep and how exactly their gradients are summed, in programs as they are compiled."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from jax import lax

from flax_attn import nnx, vision
from flax_attn._cpu.maximum import maximum
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn._cpu.weighted_sum import weighted_sum
from flax_attn.vision._gates import add, apply_gate, apply_gate_sum
from tests.compilation import AS_USERS
from tests.mechanisms import (
    facts,
    has_layers,
    load,
    mechanisms,
    nnx_module,
    random_variables,
)
from tests.runs import some_by_default
from tests.tolerances import FORWARD, GRADIENT, assert_close

SHAPE = (8, 56, 56, 256)
# Temporaries with gradients, in parts of the image: of 256 channels, a map of one is 1/256 in
# float32 and 1/128 in bfloat16; so are the kernels of C × C in float32.
GATES = {
    "SqueezeExcite": 0.03,
    "EffectiveSqueezeExcite": 0.03,
    "ECA": 0.01,
    "GlobalContext": 0.05,
    "SimAM": 0.01,
    "ChannelAttention": 0.03,
    "SpatialAttention": 0.08,
    "CBAM": 0.1,
    "SCSE": 0.05,
}
DTYPES = ["float32", "bfloat16"]
HALF_BY_DEFAULT = some_by_default(DTYPES, "bfloat16")  # which is what may be widened
about_cpus = pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA for CPUs")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def build(name, dtype):
    options = {} if name == "SimAM" else {"dtype": dtype}
    make = lambda: getattr(nnx, name)(SHAPE[-1], rngs=flax_nnx.Rngs(0), **options)
    return flax_nnx.split(flax_nnx.eval_shape(make))


def temporaries(function, *arguments):
    """Of the compiled program, in terms of the last argument."""
    with jax.numpy_dtype_promotion("standard"):  # Flax's layer norm of float32 asks for it
        memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    image = arguments[-1]
    return memory.temp_size_in_bytes / (image.size * image.dtype.itemsize)


@about_cpus
@pytest.mark.parametrize("dtype", HALF_BY_DEFAULT)
@pytest.mark.parametrize("name", GATES)
def test_a_gate_takes_little_memory_besides_the_image(name, dtype):
    graph, state = build(name, jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(SHAPE, dtype)
    assert temporaries(lambda state, x: flax_nnx.merge(graph, state)(x), state, x) < 0.05


@about_cpus
@pytest.mark.parametrize("dtype", HALF_BY_DEFAULT)
@pytest.mark.parametrize("name", GATES)
def test_the_gradient_of_a_gate_takes_little_memory_too(name, dtype):
    graph, state = build(name, jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(SHAPE, dtype)

    def run(state, cotangent, x):
        y, pull = jax.vjp(lambda state, x: flax_nnx.merge(graph, state)(x), state, x)
        return y, pull(cotangent)

    assert temporaries(run, state, x, x) < GATES[name]


@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
@pytest.mark.parametrize("axis", [-1, (-3, -2)])
def test_the_maximum_of_a_product_in_the_same_program_has_its_gradient(axis, dtype):
    """LLVM joins the product with a difference, which is then not 0 at the maximum."""
    x = jnp.asarray(draw(4, 5, 7, 8), dtype)
    factor = jnp.asarray(0.7, dtype)
    gradient = jax.grad(lambda x: jnp.sum(maximum(x * factor, axis)))
    found = jax.jit(gradient).lower(x).compile(compiler_options=AS_USERS)(x)
    formula = lambda x: jnp.sum(jnp.max(x * factor, axis).astype(jnp.float32))
    expected = jax.jit(jax.grad(formula))(x)
    assert_close(found, expected, GRADIENT[dtype])


def test_the_maximum_may_be_infinite():
    x = jnp.asarray([[jnp.inf, 1.0], [-jnp.inf, -jnp.inf], [3.0, 3.0]])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(maximum(x, -1))))(x)
    chex.assert_trees_all_equal(gradient, np.array([[1, 0], [0.5, 0.5], [0.5, 0.5]]))


@about_cpus
def test_the_count_of_ties_keeps_no_map_of_comparisons():
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)

    def run(cotangent, x):
        value, pull = jax.vjp(lambda x: maximum(x, (-3, -2)), x)
        return value, pull(cotangent)

    assert temporaries(run, jax.ShapeDtypeStruct((8, 256), jnp.float32), x) < 0.01


@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 64, 64, 1)])
def test_the_gradient_of_a_gate_is_summed_in_float32(shape):
    """JAX's transpose of a broadcast adds 4,096 ones of bfloat16 up to 1,024 on CPUs."""
    x, gate = np.ones((2, 64, 64, 3), jnp.bfloat16), np.ones(shape, jnp.bfloat16)
    total = lambda gate: jnp.sum(apply_gate(x, gate), dtype=jnp.float32)
    assert (jax.jit(jax.grad(total))(gate) == x.size / gate.size).all()


def near_float32(gradients, tolerance, skip=()):
    """Whether gradients in bfloat16 are near those in float32."""
    single, half = gradients
    for (path, expected), actual in zip(
        jax.tree_util.tree_leaves_with_path(single), jax.tree.leaves(half), strict=True
    ):
        floating = jnp.issubdtype(expected.dtype, jnp.floating)
        if floating and not any(key.key in skip for key in path):
            difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
            norm = np.linalg.norm(expected)
            assert np.linalg.norm(difference) <= tolerance * norm, jax.tree_util.keystr(path)


SUMMED = ("bam", "cbam", "coordinate_attention", "separable_attention", "squeeze_excite")


@pytest.mark.parametrize("name", some_by_default(mechanisms(), *SUMMED))
def test_modules_in_bfloat16_sum_their_gradients_in_float32(name):
    """A sum of 2,304 numbers in bfloat16 is 10 to 60 % too small.

    The biases of Flax's own layers, which are summed so, are not looked at.
    """
    own = facts(name)
    _, height, width, features = own.shape
    if own.any_size:
        height = width = 48
    x = np.random.default_rng(0).exponential(size=(1, height, width, features))
    x = jnp.asarray(x, jnp.bfloat16)
    variables = random_variables(name, features, dtype=np.float32)

    def gradient(dtype):
        options = {"dtype": dtype} if has_layers(name) else {}
        module = load(flax_nnx.eval_shape(lambda: nnx_module(name, features, **options)), variables)
        module.eval()
        graph, state = flax_nnx.split(module)
        others = [a.astype(dtype) for a in own.others(x)]

        def total(state, x):
            y = flax_nnx.merge(graph, state)(x, *others).astype(jnp.float32)
            return jnp.sum(y * jnp.linspace(0, 1, y.shape[-1]).reshape((1,) * (y.ndim - 1) + (-1,)))

        found = jax.jit(jax.grad(total, (0, 1), allow_int=True))(state, x.astype(dtype))
        return {"weights": flax_nnx.to_pure_dict(found[0]), "image": found[1]}

    with jax.numpy_dtype_promotion("standard"):  # Flax promotes parameters and inputs itself
        near_float32((gradient(jnp.float32), gradient(jnp.bfloat16)), 0.08, skip=("bias",))


def product(x, g, h):
    return x * g * h


def simam(x):
    mean = jnp.mean(x, (-3, -2), keepdims=True)
    d = (x - mean) ** 2
    v = jnp.sum(d, (-3, -2), keepdims=True) / (x.shape[-3] * x.shape[-2] - 1)
    return x * jax.nn.sigmoid(d / (4 * (v + 1e-4)) + 0.5)


PAIRS = {
    "product of gates": (apply_gate, product, ((2, 3, 4, 5), (2, 3, 1, 5), (2, 1, 4, 5))),
    "sum of gates": (
        apply_gate_sum,
        lambda x, g, h: x * (g + h),
        ((2, 3, 4, 5), (2, 3, 1, 5), (2, 1, 4, 5)),
    ),
    "added term": (add, lambda x, t: x + t, ((2, 3, 4, 5), (2, 1, 1, 5))),
    "weighted sum": (
        lambda x, w: weighted_sum(x, w, (-3, -2)),
        lambda x, w: jnp.sum(x * w, (-3, -2), keepdims=True),
        ((2, 3, 4, 5), (2, 3, 4, 1)),
    ),
    "SimAM": (vision.simam, simam, ((2, 3, 4, 5),)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_keeps_no_copies_has_the_derivatives_of_the_formula(name, x64):
    ours, formula, shapes = PAIRS[name]
    arrays = [draw(*shape) for shape in shapes]
    tangents = [draw(*shape, seed=1) for shape in shapes]
    last = len(arrays) - 1

    def derivatives(f, arrays, tangents):
        y, pull_back = jax.vjp(f, *arrays)
        return {
            "value": f(*arrays),
            "tangent": jax.jvp(f, arrays, tangents),
            "gradients": pull_back(draw(*y.shape, seed=2)),
            "mapped": jax.vmap(f)(*arrays),
            "hessian": jax.hessian(lambda a: jnp.sum(f(*arrays[:-1], a) ** 2))(arrays[-1]),
            "second": jax.jvp(jax.grad(lambda *a: jnp.sum(f(*a) ** 3), last), arrays, tangents),
        }

    found, wanted = (
        jax.jit(functools.partial(derivatives, f))(arrays, tangents) for f in (ours, formula)
    )
    for (path, actual), expected in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        assert_close(actual, expected, GRADIENT["float64"], jax.tree_util.keystr(path))


@pytest.mark.parametrize("axis", [-1, (-3, -2)])
def test_ties_share_the_gradient_of_the_maximum(axis, x64):
    x = np.random.default_rng(0).integers(0, 3, (2, 4, 5, 3)).astype(np.float64)
    cotangent = draw(*np.max(x, axis).shape)

    def value_and_gradient(f):
        value, pull_back = jax.vjp(lambda x: f(x, axis), x)
        return value, pull_back(cotangent)[0]

    found, actual = jax.jit(lambda: value_and_gradient(maximum))()
    chex.assert_trees_all_equal(found, np.max(x, axis))
    _, expected = jax.jit(lambda: value_and_gradient(jnp.max))()
    assert_close(actual, expected, GRADIENT["float64"])


def test_a_dot_product_to_one_channel_is_that_of_lax():
    x, kernel = (jnp.asarray(draw(*s), jnp.bfloat16) for s in ((2, 6, 5, 32), (32, 1)))
    numbers = (((3,), (0,)), ((), ()))
    cotangent = jnp.asarray(draw(2, 6, 5, 1), jnp.bfloat16)
    y, pull = jax.vjp(lambda x, k: dot_of_one(x, k, numbers, precision=None), x, kernel)
    wide = lambda x, k: lax.dot_general(x, k, numbers)
    expected, wide_pull = jax.vjp(wide, *(a.astype(jnp.float32) for a in (x, kernel)))
    chex.assert_type(y, jnp.bfloat16)
    assert_close(y, expected, FORWARD["bfloat16"])
    for actual, gradient in zip(
        pull(cotangent), wide_pull(cotangent.astype(jnp.float32)), strict=True
    ):
        assert_close(actual, gradient, GRADIENT["bfloat16"])


def test_a_dot_product_in_another_dtype_is_left_to_lax():
    x, kernel = (jnp.asarray(draw(*s), jnp.bfloat16) for s in ((2, 6, 5, 32), (32, 1)))
    numbers = (((3,), (0,)), ((), ()))
    wide = dot_of_one(x, kernel, numbers, preferred_element_type=jnp.float32)
    expected = lax.dot_general(x, kernel, numbers, preferred_element_type=jnp.float32)
    chex.assert_trees_all_equal(wide, expected)
