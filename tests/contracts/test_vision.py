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
from tests.mechanisms import (
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

SIZES = [(2, 7, 5, 32), (1, 3, 4, 17), (3, 6, 6, 64)]
every_mechanism = pytest.mark.parametrize("name", mechanisms())


def image(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(0.3, 1.5, shape).astype(dtype)


def apply_function(name, variables, x):
    return getattr(vision, name)(x, **maps_of(name, variables))


def test_the_namespace_holds_the_mechanisms():
    expected = {"squeeze_excite", "channel_attention", "spatial_attention", "cbam", "eca", "bam"}
    assert expected | {"coordinate_attention", "simam"} <= set(mechanisms())


@every_mechanism
def test_each_mechanism_has_an_oracle_and_both_modules(name):
    assert callable(getattr(oracles, name))
    assert issubclass(module_class(linen, name), flax_linen.Module)
    assert issubclass(module_class(nnx, name), flax_nnx.Module)


@every_mechanism
@pytest.mark.parametrize("shape", SIZES)
def test_function_and_modules_equal_the_oracle_in_float64(name, shape, x64):
    x, module = image(shape), linen_module(name)
    variables = random_variables(module, shape[-1])
    expected = getattr(oracles, name)(x, merged(variables))
    faces = {
        "function": apply_function(name, variables, jnp.asarray(x)),
        "linen": module.apply(variables, jnp.asarray(x)),
        "nnx": _nnx(name, shape[-1], variables)(jnp.asarray(x)),
    }
    for face, actual in faces.items():
        assert actual.dtype == jnp.float64
        assert_close(actual, expected, FORWARD["float64"], face)


@every_mechanism
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_low_precision_stays_so_and_near_the_oracle(name, dtype):
    shape = (2, 9, 8, 32)
    variables = random_variables(linen_module(name), shape[-1])
    x = jnp.asarray(image(shape), dtype)
    expected = getattr(oracles, name)(np.asarray(x, np.float64), merged(variables))
    single = jax.tree.map(lambda a: a.astype(np.float32), variables)
    actual = apply_function(name, single, x)
    assert actual.dtype == dtype
    assert_close(actual, expected, FORWARD[dtype])
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes parameters and inputs itself
        modules = linen_module(name).apply(single, x), _nnx(name, 32, single)(x)
    for actual in modules:
        assert actual.dtype == dtype
        assert_close(actual, expected, 2 * FORWARD[dtype])


@every_mechanism
def test_gradients_equal_differences_of_the_oracle(name, x64):
    shape = (2, 4, 5, 32)
    x = image(shape, seed=1)
    variables = random_variables(linen_module(name), shape[-1])
    direction = jax.tree.map(lambda a: image(a.shape, seed=2), (variables, x))
    cotangent = image(shape, seed=3)

    def shifted(epsilon):
        moved = jax.tree.map(lambda a, d: a + epsilon * d, (variables, x), direction)
        return np.sum(cotangent * getattr(oracles, name)(moved[1], merged(moved[0])))

    epsilon = 1e-5
    expected = (shifted(epsilon) - shifted(-epsilon)) / (2 * epsilon)

    def loss(variables, x):
        return jnp.sum(jnp.asarray(cotangent) * apply_function(name, variables, x))

    primals = jax.tree.map(jnp.asarray, (variables, x))
    gradients = jax.grad(loss, argnums=(0, 1))(*primals)
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradients, direction)
    actual = sum(jax.tree.leaves(products))
    assert abs(actual - expected) <= FINITE_DIFFERENCE * np.sum(np.abs(cotangent)), name
    _, tangent = jax.jvp(loss, primals, jax.tree.map(jnp.asarray, direction))
    chex.assert_trees_all_close(tangent, actual, rtol=1e-10)


@every_mechanism
def test_modules_and_function_have_equal_gradients(name):
    shape = (2, 4, 5, 32)
    x = jnp.asarray(image(shape, dtype=np.float32))
    module = linen_module(name)
    variables = random_variables(module, 32, dtype=np.float32)

    def loss(apply, x):
        return jnp.sum(jnp.sin(apply(x)))

    by_function = jax.grad(functools.partial(loss, lambda x: apply_function(name, variables, x)))(x)
    by_linen = jax.grad(functools.partial(loss, lambda x: module.apply(variables, x)))(x)
    by_nnx = jax.grad(functools.partial(loss, _nnx(name, 32, variables)))(x)
    for gradient in (by_linen, by_nnx):
        assert_close(gradient, by_function, GRADIENT["float32"])


@every_mechanism
def test_linen_and_nnx_have_one_parameter_tree(name):
    variables = random_variables(linen_module(name), 32)
    state = flax_nnx.to_pure_dict(flax_nnx.state(nnx_module(name, 32)))
    chex.assert_trees_all_equal_shapes(merged(variables), jax.tree.map(jnp.asarray, state))


@every_mechanism
def test_training_mode_is_the_same_in_linen_and_nnx(name):
    x = jnp.asarray(image((4, 5, 5, 32), dtype=np.float32))
    module = linen_module(name, train=True)
    variables = random_variables(module, 32, dtype=np.float32)
    expected, updated = module.apply(variables, x, mutable=["batch_stats"])
    other = load(nnx_module(name, 32), variables)
    other.train()
    assert_close(other(x), expected, FORWARD["float32"])
    state = flax_nnx.to_pure_dict(flax_nnx.state(other))
    chex.assert_trees_all_close(
        state, merged({"params": variables.get("params", {}), **updated}), rtol=1e-6
    )


@every_mechanism
def test_jit_compiles_once_for_new_weights(name):
    chex.clear_trace_counter()
    x = jnp.asarray(image((2, 4, 4, 32), dtype=np.float32))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(bound, x):
        return getattr(vision, name)(x, **bound)

    for seed in range(3):
        variables = random_variables(linen_module(name), 32, seed, np.float32)
        actual = apply(maps_of(name, variables), x)
        assert_close(actual, apply_function(name, variables, x), FORWARD["float32"])


@every_mechanism
def test_vmap_over_images_and_weights_is_a_loop(name):
    x = jnp.asarray(image((3, 2, 4, 5, 32), dtype=np.float32))
    trees = [random_variables(linen_module(name), 32, seed, np.float32) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    together = jax.vmap(functools.partial(apply_function, name))(stacked, x)
    each = jnp.stack([apply_function(name, t, xi) for t, xi in zip(trees, x, strict=True)])
    assert_close(together, each, FORWARD["float32"])


@every_mechanism
def test_leading_axes_are_a_batch(name):
    x = jnp.asarray(image((3, 2, 4, 5, 32), dtype=np.float32))
    variables = random_variables(linen_module(name), 32, dtype=np.float32)
    expected = apply_function(name, variables, x.reshape(6, 4, 5, 32))
    actual = apply_function(name, variables, x)
    assert_close(actual.reshape(6, 4, 5, 32), expected, FORWARD["float32"])
    assert_close(apply_function(name, variables, x[0, 0]), expected[0], 3 * FORWARD["float32"])


@every_mechanism
@pytest.mark.parametrize("fill", [0.0, 1.0, -1.0])
def test_gradients_are_finite_on_constant_images(name, fill):
    x = jnp.full((2, 4, 5, 32), fill)
    variables = random_variables(linen_module(name), 32, dtype=np.float32)
    gradients = jax.grad(lambda v, x: jnp.sum(apply_function(name, v, x) ** 2), argnums=(0, 1))(
        jax.tree.map(jnp.asarray, variables), x
    )
    chex.assert_tree_all_finite(gradients)


@every_mechanism
def test_one_place_works_or_is_refused(name):
    x = jnp.asarray(image((1, 1, 1, 32), dtype=np.float32))
    variables = random_variables(linen_module(name), 32, dtype=np.float32)
    if name == "simam":
        with pytest.raises(ValueError, match="at least two places"):
            apply_function(name, variables, x)
    else:
        expected = getattr(oracles, name)(np.asarray(x, np.float64), merged(variables))
        assert_close(apply_function(name, variables, x), expected, FORWARD["float32"])


@pytest.mark.parametrize("name", [n for n in mechanisms() if hasattr(vision, f"{n}_gate")])
def test_the_gate_multiplies_the_input(name):
    x = jnp.asarray(image((2, 4, 5, 32), dtype=np.float32))
    variables = random_variables(linen_module(name), 32, dtype=np.float32)
    gate = getattr(vision, f"{name}_gate")(x, **maps_of(name, variables))
    factors = gate if isinstance(gate, tuple) else (gate,)
    assert all(g.dtype == x.dtype and g.ndim == x.ndim for g in factors)
    product = functools.reduce(jnp.multiply, factors, x)
    assert_close(product, apply_function(name, variables, x), FORWARD["float32"])


@every_mechanism
def test_modules_sow_their_gates_only_on_request(name):
    x = jnp.asarray(image((2, 4, 5, 32), dtype=np.float32))
    module = linen_module(name)
    variables = random_variables(module, 32, dtype=np.float32)
    y, sown = module.apply(variables, x, mutable=["intermediates"])
    gates = jax.tree.leaves(sown["intermediates"])
    assert_close(functools.reduce(jnp.multiply, gates, x), y, FORWARD["float32"])
    other = _nnx(name, 32, variables)
    other(x)
    assert not jax.tree.leaves(flax_nnx.state(other, flax_nnx.Intermediate))
    _, captured = flax_nnx.capture(other, flax_nnx.Intermediate)(x)
    chex.assert_trees_all_close(
        jax.tree.leaves(flax_nnx.to_pure_dict(captured)), gates, rtol=1e-6, atol=1e-6
    )


@every_mechanism
def test_it_exports_for_any_batch_and_size(name):
    variables = random_variables(linen_module(name), 32, dtype=np.float32)
    batch, height, width = jax.export.symbolic_shape("b, h, w")
    shape = jax.ShapeDtypeStruct((batch, height, width, 32), jnp.float32)
    exported = jax.export.export(jax.jit(functools.partial(apply_function, name, variables)))(shape)
    x = jnp.asarray(image((3, 5, 6, 32), dtype=np.float32))
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
def test_what_is_not_an_image_is_refused(name):
    variables = random_variables(linen_module(name), 32, dtype=np.float32)
    bound = maps_of(name, variables)
    function = getattr(vision, name)
    with pytest.raises(ValueError, match=r"must be \[\*B, H, W, C\].*got \[4, 32\]"):
        function(jnp.ones((4, 32)), **bound)
    with pytest.raises(ValueError, match=r"at least 1, got \[2, 0, 4, 32\]"):
        function(jnp.ones((2, 0, 4, 32)), **bound)
    with pytest.raises(TypeError, match="must be floating point, got int32"):
        function(jnp.ones((2, 4, 4, 32), jnp.int32), **bound)


def _nnx(name, features, variables):
    module = load(nnx_module(name, features), variables)
    module.eval()
    return module
