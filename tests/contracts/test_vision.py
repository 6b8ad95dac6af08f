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
from tests.runs import long, some_by_default
from tests.tolerances import FINITE_DIFFERENCE, FORWARD, GRADIENT, assert_close

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


def apply_nnx(name, variables, x):
    module = load(nnx_module(name, x.shape[-1]), variables)
    module.eval()
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm asks for it
        y = flax_nnx.jit(lambda module, x: module(x, *facts(name).others(x)))(module, x)
    assert not jax.tree.leaves(flax_nnx.state(module, flax_nnx.Intermediate))
    return y


def linen_program(name, train=False):
    """A function of variables and images: the output, what is sown, the new statistics."""
    module = linen_module(name, train)

    def run(variables, x):
        kept = ["intermediates", "batch_stats"]
        y, changed = module.apply(variables, x, *facts(name).others(x), mutable=kept)
        return y, *(jax.tree.leaves(changed.get(collection)) for collection in kept)

    return run


def nnx_program(name, train=False):
    """The same function by the NNX module, of the Linen module's variables."""
    module = nnx_module(name, facts(name).shape[-1])
    module.set_attributes(use_running_average=not train, raise_if_not_found=False)

    def run(variables, x):
        copy = load(flax_nnx.clone(module), variables)
        y, sown = flax_nnx.capture(copy, flax_nnx.Intermediate)(x, *facts(name).others(x))
        return y, jax.tree.leaves(sown), jax.tree.leaves(flax_nnx.state(copy, flax_nnx.BatchStat))

    return run


def shape_of(name, shape=None):
    """The image that a mechanism is tried on; another where every size will do."""
    own = facts(name).shape
    return shape if shape and facts(name).any_size and own[-1] == 32 else own


def test_the_namespace_holds_the_mechanisms():
    expected = {"squeeze_excite", "channel_attention", "spatial_attention", "cbam", "eca", "bam"}
    assert expected | {"coordinate_attention", "simam"} <= set(mechanisms())


def test_each_mechanism_has_an_oracle_and_both_modules():
    for name in mechanisms():
        assert callable(getattr(oracles, name))
        assert issubclass(module_class(linen, name), flax_linen.Module)
        assert issubclass(module_class(nnx, name), flax_nnx.Module)


@every_mechanism
def test_function_and_its_derivatives_equal_the_oracle_in_float64(name, x64):
    x = image(facts(name).shape, seed=1)
    variables = random_variables(name, x.shape[-1])
    expected = apply_oracle(name, variables, x)
    direction = jax.tree.map(lambda a: image(a.shape, seed=2), (variables, x))
    cotangent = image(expected.shape, seed=3)

    @jax.jit
    def run(primals, direction):
        def loss(variables, x):
            y = apply_function(name, variables, x)
            return jnp.sum(cotangent * y), y

        gradients = jax.grad(loss, (0, 1), has_aux=True)(*primals)[0]
        (_, y), (tangent, _) = jax.jvp(loss, primals, direction)
        return y, gradients, tangent

    y, gradients, tangent = run((variables, x), direction)
    chex.assert_type(y, jnp.float64)
    assert_close(y, expected, FORWARD["float64"])

    def shifted(epsilon):
        moved = jax.tree.map(lambda a, d: a + epsilon * d, (variables, x), direction)
        return np.sum(cotangent * apply_oracle(name, *moved))

    epsilon = 3e-6
    slope = (shifted(epsilon) - shifted(-epsilon)) / (2 * epsilon)
    products = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), gradients, direction)
    actual = sum(jax.tree.leaves(products))
    assert abs(actual - slope) <= FINITE_DIFFERENCE * np.sum(np.abs(cotangent)), name
    chex.assert_trees_all_close(np.asarray(tangent), actual, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=[long] if i else [])
        for name in mechanisms()
        for i, shape in enumerate(facts(name).shapes)
    ],
)
def test_function_and_module_equal_the_oracle_in_float64(name, shape, x64):
    x = image(shape)
    variables = random_variables(name, shape[-1])
    expected = apply_oracle(name, variables, x)
    for apply in (apply_function, apply_nnx):
        actual = apply(name, variables, jnp.asarray(x))
        chex.assert_type(actual, jnp.float64)
        assert_close(actual, expected, FORWARD["float64"], apply.__name__)


@every_mechanism
@pytest.mark.parametrize("train", some_by_default([False, True], False))
def test_linen_and_nnx_are_one_program(name, train):
    """Output, gates and statistics: so what is proved of one module is proved of its twin."""
    x = image(facts(name).shape, dtype=np.float32)
    variables = random_variables(name, x.shape[-1], dtype=np.float32)
    programs = [make(name, train) for make in (linen_program, nnx_program)]
    linens, nnxs = (jax.make_jaxpr(program)(variables, x) for program in programs)
    if str(linens) != str(nnxs):  # Flax's two norms are written in two ways
        assert any("norm" in key for key in merged(variables)), name
        one, other = (jax.jit(program)(variables, x) for program in programs)
        chex.assert_trees_all_close(one, other, rtol=1e-6, atol=1e-6)


@long
@every_mechanism
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_low_precision_stays_so_and_near_the_oracle(name, dtype):
    shape = shape_of(name, (2, 9, 8, 32))
    variables = random_variables(name, shape[-1])
    x = jnp.asarray(image(shape), dtype)
    expected = apply_oracle(name, variables, np.asarray(x, np.float64))
    single = jax.tree.map(lambda a: a.astype(np.float32), variables)
    for apply, tolerance in ((apply_function, FORWARD[dtype]), (apply_nnx, 2 * FORWARD[dtype])):
        actual = apply(name, single, x)
        chex.assert_type(actual, dtype)
        assert_close(actual, expected, tolerance, apply.__name__)


@long
@every_mechanism
def test_module_and_function_have_equal_gradients(name):
    x = jnp.asarray(image(facts(name).shape, dtype=np.float32))
    variables = random_variables(name, x.shape[-1], dtype=np.float32)

    def gradient(apply):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(apply(name, variables, x)))))(x)

    assert_close(gradient(apply_nnx), gradient(apply_function), GRADIENT["float32"])


@every_mechanism
def test_linen_and_nnx_have_one_parameter_tree(name):
    features = facts(name).shape[-1]
    variables = random_variables(name, features)
    state = flax_nnx.to_pure_dict(flax_nnx.state(nnx_module(name, features)))
    chex.assert_trees_all_equal_shapes(merged(variables), jax.tree.map(jnp.asarray, state))


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
    x = image((3, *shape), dtype=np.float32)
    trees = [random_variables(name, shape[-1], seed, np.float32) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    apply = functools.partial(apply_function, name)
    together = jax.jit(jax.vmap(apply))(stacked, x)
    one = jax.jit(apply)
    each = np.stack([one(variables, xi) for variables, xi in zip(trees, x, strict=True)])
    assert_close(together, each, FORWARD["float32"])


@long
@every_mechanism
def test_leading_axes_are_a_batch(name):
    image_shape = facts(name).shape[1:]
    x = image((3, 2, *image_shape), dtype=np.float32)
    variables = random_variables(name, image_shape[-1], dtype=np.float32)
    flat = x.reshape(6, *image_shape)
    expected = jax.jit(functools.partial(apply_function, name))(variables, flat)
    for apply in (apply_function, apply_nnx):
        run = jax.jit(functools.partial(apply, name, variables))
        assert_close(run(x).reshape(expected.shape), expected, FORWARD["float32"], apply)
        assert_close(run(x[0, 0]), expected[0], 3 * FORWARD["float32"], apply)


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
    assert len(y) == 0
    chex.assert_shape(dx, shape)
    chex.assert_trees_all_equal_shapes(dvariables, variables)


@long
@every_mechanism
def test_gradients_are_finite_on_constant_images(name):
    shape = facts(name).shape
    variables = random_variables(name, shape[-1], dtype=np.float32)
    loss = lambda v, x: jnp.sum(apply_function(name, v, x) ** 2)
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    for fill in (0.0, 1.0, -1.0):
        chex.assert_tree_all_finite(gradient(variables, jnp.full(shape, fill)))


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
        actual = jax.jit(functools.partial(apply_function, name))(variables, x)
        assert_close(actual, expected, FORWARD["float32"])


@every_gate
def test_the_input_is_multiplied_by_the_gate_that_is_sown(name):
    x = image(facts(name).shape, dtype=np.float32)
    variables = random_variables(name, x.shape[-1], dtype=np.float32)

    @jax.jit
    def run(variables, x):
        others, arguments = facts(name).others(x), maps_of(name, variables)
        gate = getattr(vision, f"{name}_gate")(x, *others, **arguments)
        return gate, getattr(vision, name)(x, *others, **arguments)

    gates, y = run(variables, x)
    chex.assert_type(jax.tree.leaves(gates), x.dtype)
    chex.assert_rank(jax.tree.leaves(gates), x.ndim)
    module_y, sown, _ = jax.jit(nnx_program(name))(variables, x)
    for factors, output in ((jax.tree.leaves(gates), y), (sown, module_y)):
        product = facts(name).after(functools.reduce(jnp.multiply, factors, x))
        assert_close(product, output, FORWARD["float32"])


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


def test_signatures_and_docstrings_are_complete():
    missing = []
    for name in mechanisms():
        signature = inspect.signature(getattr(vision, name))
        wanted = [f"{x}:" for x in ("Args", "Returns", "Raises", "Example", "References")]
        wanted += [f"  {parameter}: " for parameter in signature.parameters]
        doc = inspect.getdoc(getattr(vision, name))
        missing += [f"{name} {part.strip()}" for part in wanted if part not in doc]
        if signature.return_annotation is inspect.Signature.empty:
            missing.append(f"{name} ->")
    assert not missing


@every_mechanism
def test_what_is_not_an_image_is_refused(name):
    _, height, width, features = shape = facts(name).shape
    others = facts(name).others(np.ones(shape, np.float32))
    variables = random_variables(name, features, dtype=np.float32)
    forms = (
        functools.partial(getattr(vision, name), **maps_of(name, variables)),
        functools.partial(linen_module(name).init, jax.random.key(0)),
        nnx_module(name, features),
    )
    for call in forms:
        with pytest.raises(ValueError, match=rf"must be \[\*B, H, W, C\].*got \[4, {features}\]"):
            call(jnp.ones((4, features)), *others)
        with pytest.raises(ValueError, match=rf"at least 1, got \[2, 0, {width}, {features}\]"):
            call(jnp.ones((2, 0, width, features)), *others)
        with pytest.raises(TypeError, match="must be floating point, got int32"):
            call(jnp.ones((2, height, width, features), jnp.int32), *others)
        with pytest.raises(TypeError, match=r"an array, got list\. Wrap it: jnp\.asarray\(x\)"):
            call([[[0.5] * features] * width] * height, *others)
