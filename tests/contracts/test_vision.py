"""What every vision mechanism promises, found through the package namespaces."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import linen, nnx, vision
from tests.compilation import AS_USERS
from tests.mechanisms import (
    facts,
    linen_module,
    load,
    maps_of,
    mechanisms,
    merged,
    module_class,
    nnx_module,
    random_variables,
)
from tests.oracles import vision as oracles
from tests.tolerances import FINITE_DIFFERENCE, FORWARD, GRADIENT, assert_close

long = pytest.mark.conformance
every_mechanism = pytest.mark.parametrize("name", mechanisms())
every_gate = pytest.mark.parametrize(
    "name", [name for name in mechanisms() if hasattr(vision, f"{name}_gate")]
)


def image(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(0.3, 1.5, shape).astype(dtype)


def apply_function(name, variables, x):
    return getattr(vision, name)(x, *facts(name).others(x), **maps_of(name, variables))


def apply_oracle(name, variables, x):
    return getattr(oracles, name)(x, *facts(name).others(x), merged(variables))


def apply_linen(name, variables, x, **options):
    return linen_module(name, **options).apply(variables, x, *facts(name).others(x))


def apply_nnx(name, variables, x):
    return _nnx(name, x.shape[-1], variables)(x, *facts(name).others(x))


def shape_of(name, shape=None):
    """The image that a mechanism is tried on; another where every size will do."""
    own = facts(name).shape
    return shape if shape and facts(name).any_size and own[-1] == 32 else own


def test_the_namespace_holds_the_mechanisms():
    expected = {"squeeze_excite", "channel_attention", "spatial_attention", "cbam", "eca", "bam"}
    assert expected | {"coordinate_attention", "simam"} <= set(mechanisms())


@every_mechanism
def test_each_mechanism_has_an_oracle_and_both_modules(name):
    assert callable(getattr(oracles, name))
    assert issubclass(module_class(linen, name), flax_linen.Module)
    assert issubclass(module_class(nnx, name), flax_nnx.Module)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=[long] if i else [])
        for name in mechanisms()
        for i, shape in enumerate(facts(name).shapes)
    ],
)
def test_function_and_modules_equal_the_oracle_in_float64(name, shape, x64):
    x = image(shape)
    variables = random_variables(name, shape[-1])
    expected = apply_oracle(name, variables, x)
    faces = {"function": apply_function(name, variables, jnp.asarray(x))}
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm asks for it
        faces["linen"] = apply_linen(name, variables, jnp.asarray(x))
        faces["nnx"] = apply_nnx(name, variables, jnp.asarray(x))
    for face, actual in faces.items():
        assert actual.dtype == jnp.float64
        assert_close(actual, expected, FORWARD["float64"], face)


@long
@every_mechanism
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_low_precision_stays_so_and_near_the_oracle(name, dtype):
    shape = shape_of(name, (2, 9, 8, 32))
    variables = random_variables(name, shape[-1])
    x = jnp.asarray(image(shape), dtype)
    expected = apply_oracle(name, variables, np.asarray(x, np.float64))
    single = jax.tree.map(lambda a: a.astype(np.float32), variables)
    actual = apply_function(name, single, x)
    assert actual.dtype == dtype
    assert_close(actual, expected, FORWARD[dtype])
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes parameters and inputs itself
        modules = apply_linen(name, single, x), apply_nnx(name, single, x)
    for actual in modules:
        assert actual.dtype == dtype
        assert_close(actual, expected, 2 * FORWARD[dtype])


@every_mechanism
def test_gradients_equal_differences_of_the_oracle(name, x64):
    shape = facts(name).shape
    x = image(shape, seed=1)
    variables = random_variables(name, shape[-1])
    direction = jax.tree.map(lambda a: image(a.shape, seed=2), (variables, x))
    cotangent = image(apply_oracle(name, variables, x).shape, seed=3)

    def shifted(epsilon):
        moved = jax.tree.map(lambda a, d: a + epsilon * d, (variables, x), direction)
        return np.sum(cotangent * apply_oracle(name, *moved))

    epsilon = 3e-6
    expected = (shifted(epsilon) - shifted(-epsilon)) / (2 * epsilon)

    def loss(variables, x):
        return jnp.sum(jnp.asarray(cotangent) * apply_function(name, variables, x))

    primals = jax.tree.map(jnp.asarray, (variables, x))
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(*primals)
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradients, direction)
    actual = sum(jax.tree.leaves(products))
    assert abs(actual - expected) <= FINITE_DIFFERENCE * np.sum(np.abs(cotangent)), name
    _, tangent = jax.jvp(loss, primals, jax.tree.map(jnp.asarray, direction))
    chex.assert_trees_all_close(tangent, actual, rtol=1e-10)


@long
@every_mechanism
def test_modules_and_function_have_equal_gradients(name):
    shape = facts(name).shape
    x = jnp.asarray(image(shape, dtype=np.float32))
    variables = random_variables(name, shape[-1], dtype=np.float32)

    def gradient(apply):
        return jax.grad(lambda x: jnp.sum(jnp.sin(apply(name, variables, x))))(x)

    expected = gradient(apply_function)
    for face in (apply_linen, apply_nnx):
        assert_close(gradient(face), expected, GRADIENT["float32"])


@every_mechanism
def test_linen_and_nnx_have_one_parameter_tree(name):
    features = facts(name).shape[-1]
    variables = random_variables(name, features)
    state = flax_nnx.to_pure_dict(flax_nnx.state(nnx_module(name, features)))
    chex.assert_trees_all_equal_shapes(merged(variables), jax.tree.map(jnp.asarray, state))


@long
@every_mechanism
def test_training_mode_is_the_same_in_linen_and_nnx(name):
    shape = shape_of(name, (4, 5, 5, 32))
    x = jnp.asarray(image(shape, dtype=np.float32))
    module = linen_module(name, train=True)
    variables = random_variables(name, shape[-1], dtype=np.float32)
    others = facts(name).others(x)
    expected, updated = module.apply(variables, x, *others, mutable=["batch_stats"])
    other = load(nnx_module(name, shape[-1]), variables)
    other.train()
    assert_close(other(x, *others), expected, FORWARD["float32"])
    state = flax_nnx.to_pure_dict(flax_nnx.state(other))
    chex.assert_trees_all_close(
        state, merged({"params": variables.get("params", {}), **updated}), rtol=1e-6
    )


@long
@every_mechanism
def test_jit_compiles_once_for_new_weights(name):
    chex.clear_trace_counter()
    shape = facts(name).shape
    x = jnp.asarray(image(shape, dtype=np.float32))
    fixed = facts(name).function

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(bound, x):
        return getattr(vision, name)(x, *facts(name).others(x), **bound, **fixed)

    for seed in range(3):
        variables = random_variables(name, shape[-1], seed, np.float32)
        bound = {k: v for k, v in maps_of(name, variables).items() if k not in fixed}
        actual = apply(bound, x)
        assert_close(actual, apply_function(name, variables, x), FORWARD["float32"])


@long
@every_mechanism
def test_vmap_over_images_and_weights_is_a_loop(name):
    shape = facts(name).shape
    x = jnp.asarray(image((3, *shape), dtype=np.float32))
    trees = [random_variables(name, shape[-1], seed, np.float32) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    together = jax.vmap(functools.partial(apply_function, name))(stacked, x)
    each = jnp.stack([apply_function(name, t, xi) for t, xi in zip(trees, x, strict=True)])
    assert_close(together, each, FORWARD["float32"])


@long
@every_mechanism
def test_leading_axes_are_a_batch(name):
    image_shape = facts(name).shape[1:]
    x = jnp.asarray(image((3, 2, *image_shape), dtype=np.float32))
    variables = random_variables(name, image_shape[-1], dtype=np.float32)
    expected = apply_function(name, variables, x.reshape(6, *image_shape))
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm asks for it
        for apply in (apply_function, apply_linen, apply_nnx):
            actual = apply(name, variables, x)
            assert_close(actual.reshape(expected.shape), expected, FORWARD["float32"], apply)
            actual = apply(name, variables, x[0, 0])
            assert_close(actual, expected[0], 3 * FORWARD["float32"], apply)


@long
@every_mechanism
def test_gradients_are_the_same_when_compiled_with_what_comes_before(name, x64):
    """Fused into one another and optimised by LLVM: a product may be joined with a difference."""
    x = jnp.asarray(image(facts(name).shape))
    variables = jax.tree.map(jnp.asarray, random_variables(name, x.shape[-1]))

    def loss(variables, x):
        y = apply_function(name, variables, 0.7 * x)
        return jnp.sum(jnp.sin(y) * jnp.linspace(0.5, 1.5, y.size).reshape(y.shape))

    gradient = jax.grad(loss, (0, 1))
    compiled = jax.jit(gradient).lower(variables, x).compile(compiler_options=AS_USERS)
    actual, expected = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(f(variables, x))])
        for f in (compiled, gradient)
    )
    assert_close(actual, expected, GRADIENT["float64"])


@every_mechanism
def test_an_empty_batch_has_an_empty_result_and_gradients_of_zeros(name):
    shape = (0, *facts(name).shape[1:])
    variables = jax.tree.map(jnp.asarray, random_variables(name, shape[-1], dtype=np.float32))

    def loss(variables, x):
        y = apply_function(name, variables, x)
        return jnp.sum(y), y

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    (dvariables, dx), y = jax.eval_shape(gradient, variables, jnp.zeros(shape))
    assert y.shape[0] == 0
    assert dx.shape == shape
    assert jax.tree.map(jnp.shape, dvariables) == jax.tree.map(jnp.shape, variables)


@long
@every_mechanism
@pytest.mark.parametrize("fill", [0.0, 1.0, -1.0])
def test_gradients_are_finite_on_constant_images(name, fill):
    shape = facts(name).shape
    x = jnp.full(shape, fill)
    variables = random_variables(name, shape[-1], dtype=np.float32)
    gradients = jax.grad(lambda v, x: jnp.sum(apply_function(name, v, x) ** 2), argnums=(0, 1))(
        jax.tree.map(jnp.asarray, variables), x
    )
    chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("name", [name for name in mechanisms() if facts(name).any_size])
def test_one_place_works_or_is_refused(name):
    features = facts(name).shape[-1]
    x = jnp.asarray(image((1, 1, 1, features), dtype=np.float32))
    variables = random_variables(name, features, dtype=np.float32)
    if facts(name).one_place:
        with pytest.raises(ValueError, match=facts(name).one_place):
            apply_function(name, variables, x)
    else:
        expected = apply_oracle(name, variables, np.asarray(x, np.float64))
        assert_close(apply_function(name, variables, x), expected, FORWARD["float32"])


@every_gate
def test_the_gate_multiplies_the_input(name):
    shape = facts(name).shape
    x = jnp.asarray(image(shape, dtype=np.float32))
    variables = random_variables(name, shape[-1], dtype=np.float32)
    others = facts(name).others(x)
    gate = getattr(vision, f"{name}_gate")(x, *others, **maps_of(name, variables))
    factors = gate if isinstance(gate, tuple) else (gate,)
    assert all(g.dtype == x.dtype and g.ndim == x.ndim for g in factors)
    product = facts(name).after(functools.reduce(jnp.multiply, factors, x))
    assert_close(product, apply_function(name, variables, x), FORWARD["float32"])


@every_gate
def test_modules_sow_their_gates(name):
    shape = facts(name).shape
    x = jnp.asarray(image(shape, dtype=np.float32))
    variables = random_variables(name, shape[-1], dtype=np.float32)
    others = facts(name).others(x)
    y, sown = linen_module(name).apply(variables, x, *others, mutable=["intermediates"])
    gates = jax.tree.leaves(sown["intermediates"])
    product = facts(name).after(functools.reduce(jnp.multiply, gates, x))
    assert_close(product, y, FORWARD["float32"])


@every_mechanism
def test_linen_and_nnx_sow_the_same_and_only_on_request(name):
    shape = facts(name).shape
    x = jnp.asarray(image(shape, dtype=np.float32))
    variables = random_variables(name, shape[-1], dtype=np.float32)
    others = facts(name).others(x)
    _, sown = linen_module(name).apply(variables, x, *others, mutable=["intermediates"])
    other = _nnx(name, shape[-1], variables)
    other(x, *others)
    assert not jax.tree.leaves(flax_nnx.state(other, flax_nnx.Intermediate))
    _, captured = flax_nnx.capture(other, flax_nnx.Intermediate)(x, *others)
    chex.assert_trees_all_close(
        jax.tree.leaves(flax_nnx.to_pure_dict(captured)),
        jax.tree.leaves(sown.get("intermediates", {})),
        rtol=1e-6,
        atol=1e-6,
    )


@long
@every_mechanism
def test_it_exports_for_any_batch_and_size(name):
    *_, height, width, features = shape_of(name, (3, 5, 6, 32))
    variables = random_variables(name, features, dtype=np.float32)
    (batch,) = jax.export.symbolic_shape("b")
    symbols = (batch, height, width)
    if facts(name).any_size and facts(name).symbolic_size:
        symbols = jax.export.symbolic_shape("b, h, w")
    shape = jax.ShapeDtypeStruct((*symbols, features), jnp.float32)
    exported = jax.export.export(jax.jit(functools.partial(apply_function, name, variables)))(shape)
    x = jnp.asarray(image((3, height, width, features), dtype=np.float32))
    assert_close(exported.call(x), apply_function(name, variables, x), FORWARD["float32"])


@every_mechanism
def test_signatures_and_docstrings_are_complete(name):
    function = getattr(vision, name)
    doc = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:", "References:"):
        assert section in doc, section
    for parameter in inspect.signature(function).parameters:
        assert f"  {parameter}: " in doc, parameter
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@every_mechanism
@pytest.mark.parametrize("form", ["function", "linen", "nnx"])
def test_what_is_not_an_image_is_refused(name, form):
    _, height, width, features = shape = facts(name).shape
    others = facts(name).others(jnp.ones(shape))
    if form == "function":
        variables = random_variables(name, features, dtype=np.float32)
        call = functools.partial(getattr(vision, name), **maps_of(name, variables))
    elif form == "linen":
        call = functools.partial(linen_module(name).init, jax.random.key(0))
    else:
        call = nnx_module(name, features)

    with pytest.raises(ValueError, match=rf"must be \[\*B, H, W, C\].*got \[4, {features}\]"):
        call(jnp.ones((4, features)), *others)
    with pytest.raises(ValueError, match=rf"at least 1, got \[2, 0, {width}, {features}\]"):
        call(jnp.ones((2, 0, width, features)), *others)
    with pytest.raises(TypeError, match="must be floating point, got int32"):
        call(jnp.ones((2, height, width, features), jnp.int32), *others)
    with pytest.raises(
        TypeError, match=r"x must be an array, got list\. Wrap it: jnp\.asarray\(x\)"
    ):
        call([[[0.5] * features] * width] * height, *others)


def _nnx(name, features, variables):
    module = load(nnx_module(name, features), variables)
    module.eval()
    return module
