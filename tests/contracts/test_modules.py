"""What every module promises beside its numbers: pickling, copies, bridges, and how it is made."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import dot_product_attention, linen, nnx
from tests.mechanisms import facts, linen_module, mechanisms, module_class, nnx_module

every_mechanism = pytest.mark.parametrize("name", mechanisms())
RNGS = flax_nnx.Rngs(0)


def image(name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=facts(name).shape), jnp.float32)
    return x, *facts(name).others(x)


SEQUENCES = {
    "MultiHeadAttention": (
        lambda **options: nnx.MultiHeadAttention(4, 8, **options),
        lambda: linen.MultiHeadAttention(num_heads=4),
        (jnp.ones((2, 5, 8)),),
    ),
    "AdditiveAttention": (
        lambda **options: nnx.AdditiveAttention(8, 8, **options),
        lambda: linen.AdditiveAttention(8),
        (jnp.ones((2, 5, 8)),) * 3,
    ),
    "LearnedPositions": (
        lambda **options: nnx.LearnedPositions(16, 8, **options),
        lambda: linen.LearnedPositions(16, 8),
        (jnp.arange(5),),
    ),
}


def made(name):
    """A module of NNX, the same of Linen, and what they are called with."""
    if name in SEQUENCES:
        of_nnx, of_linen, inputs = SEQUENCES[name]
        return of_nnx(rngs=flax_nnx.Rngs(0)), of_linen(), inputs
    return nnx_module(name, facts(name).shape[-1]), linen_module(name), image(name)


every_module = pytest.mark.parametrize("name", [*mechanisms(), *SEQUENCES])


def test_these_are_all_modules():
    classes = {module_class(nnx, name).__name__ for name in mechanisms()} | set(SEQUENCES)
    assert classes | {"attention_fn"} == set(nnx.__all__)


@every_module
def test_modules_of_nnx_are_pickled_and_copied(name):
    module, _, _ = made(name)
    definition, state = flax_nnx.split(module)
    copied = copy.deepcopy(module)
    for other in (pickle.loads(pickle.dumps(module)), copy.copy(module), copied):
        same_definition, same_state = flax_nnx.split(other)
        if other is not copied:  # Flax copies the functions in it, too
            assert same_definition == definition  # so that jit does not trace again
        arrays, same_arrays = (
            jax.tree.leaves(flax_nnx.to_pure_dict(s)) for s in (state, same_state)
        )
        for a, b in zip(arrays, same_arrays, strict=True):
            np.testing.assert_array_equal(key_data(a), key_data(b))


def key_data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@every_module
def test_modules_of_linen_are_copied_as_those_of_flax_are(name):
    _, module, inputs = made(name)
    copied = copy.deepcopy(module)
    assert type(copied) is type(module)
    shapes, same = (jax.eval_shape(m.init, jax.random.key(0), *inputs) for m in (module, copied))
    assert jax.tree.structure(shapes) == jax.tree.structure(same)


ACTIVATIONS = [
    jax.nn.silu,
    jax.nn.hard_swish,
    jax.nn.gelu,
    jnp.tanh,
    flax_nnx.relu,
    functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    functools.partial(jax.nn.gelu, approximate=False),
]


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_every_function_of_jax_is_pickled_by_its_name(function):
    x = image("squeeze_excite")[0]
    module = nnx.SqueezeExcite(32, activation_fn=function, rngs=flax_nnx.Rngs(0))
    np.testing.assert_array_equal(copy.deepcopy(module)(x), module(x))
    read = pickle.loads(pickle.dumps(module))
    np.testing.assert_array_equal(read(x), module(x))
    assert read.gate_fn is jax.nn.sigmoid
    if isinstance(function, functools.partial):
        assert read.activation_fn.func is function.func
    else:
        assert read.activation_fn is function
    assert module.activation_fn is function


def test_a_model_of_modules_is_pickled():
    class Block(flax_nnx.Module):
        def __init__(self, rngs):
            self.gates = flax_nnx.List([nnx.CBAM(16, rngs=rngs), nnx.ECA(16, rngs=rngs)])

    block = Block(flax_nnx.Rngs(0))
    copied = copy.deepcopy(block)
    x = jnp.ones((2, 4, 4, 16))
    np.testing.assert_array_equal(copied.gates[0](x), block.gates[0](x))
    gates = pickle.loads(pickle.dumps(block.gates))
    np.testing.assert_array_equal(gates[0](x), block.gates[0](x))


@every_module
def test_linen_modules_are_bridged_to_nnx(name):
    _, module, inputs = made(name)
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    expected = jax.eval_shape(module.apply, variables, *inputs)
    assert bridge(module, *inputs).shape == expected.shape


def bridge(module, *inputs):
    """What the module gives inside of NNX, in shape."""

    def call(*inputs):
        bridged = flax_nnx.bridge.ToNNX(module, rngs=flax_nnx.Rngs(0)).lazy_init(*inputs)
        return bridged(*inputs)

    return flax_nnx.eval_shape(call, *inputs)


@every_mechanism
def test_linen_modules_with_a_norm_of_ones_own_are_bridged_to_nnx(name):
    if not hasattr(linen_module(name), "norm"):
        pytest.skip("it has no norm")
    norm = functools.partial(flax_linen.BatchNorm, use_running_average=True)
    module = module_class(linen, name)(**{**facts(name).module, "norm": norm})
    x, *others = image(name)
    assert bridge(module, x, *others).ndim == x.ndim


NOT_RANDOM = ("channel_affinity_attention", "gated_channel_transform", "simam")


@pytest.mark.parametrize("name", [*sorted({*mechanisms()} - {*NOT_RANDOM}), *SEQUENCES])
def test_keys_that_are_no_rngs_are_refused_with_the_fix(name):
    build = SEQUENCES[name][0] if name in SEQUENCES else functools.partial(nnx_module, name, 64)
    message = r"^\w+: rngs must be an nnx\.Rngs, got .*Wrap .*: rngs=nnx\.Rngs\(key\)"
    for keys in (jax.random.key(0), jax.random.PRNGKey(0), 0, {"params": 0}, None, flax_nnx.Rngs):
        with pytest.raises(TypeError, match=message):
            build(rngs=keys)


@every_mechanism
def test_unknown_options_are_refused(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel_width'"):
        nnx_module(name, facts(name).shape[-1], kernel_width=3)


@every_mechanism
def test_every_module_of_nnx_takes_channels_and_keys_and_checks_its_input(name):
    module = nnx_module(name, facts(name).shape[-1])
    x, *others = image(name)
    with pytest.raises(ValueError, match="channels that the module was made for"):
        module(jnp.concatenate([x, x], axis=-1), *others)


@pytest.mark.parametrize("cls", [nnx.SpatialAttention, nnx.TripletAttention])
def test_a_module_for_any_number_of_channels_may_do_without_it(cls):
    module = cls(rngs=flax_nnx.Rngs(0))
    for features in (3, 8):
        assert module(jnp.ones((2, 9, 9, features))).shape == (2, 9, 9, features)


def test_a_constructor_of_ones_own_may_take_any_keys():
    class Mine(nnx.ECA):
        def __init__(self, features, rngs):
            super().__init__(features, rngs=flax_nnx.Rngs(rngs))

    assert Mine(16, rngs=jax.random.key(0))(jnp.ones((2, 4, 4, 16))).shape == (2, 4, 4, 16)


@every_mechanism
def test_linen_modules_say_that_they_infer_the_channels(name):
    cls = module_class(linen, name)
    for args, options in (
        ((64,), {}),
        ((64,), {"rngs": RNGS}),
        ((), {"in_features": 64}),
        ((), {"rngs": RNGS}),
    ):
        with pytest.raises(TypeError) as caught:
            cls(*args, **options)
        message = str(caught.value)
        assert message.startswith(f"{cls.__name__}: options are passed by name, and the channels")
        assert f"Write {cls.__name__}(); the keys go to init." in message
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel_width'"):
        cls(kernel_width=3)


def test_linens_second_argument_is_no_width():
    with pytest.raises(TypeError, match=r"dtype must be a dtype, got 256.*qkv_features=256"):
        linen.MultiHeadAttention(8, 256).init(jax.random.key(0), jnp.ones((2, 5, 256)))


def test_linens_transformations_make_our_modules():
    x = jnp.ones((2, 4, 4, 16))
    variables = linen.CBAM().init(jax.random.key(0), x)
    remade = flax_linen.remat(linen.CBAM)(kernel_size=3)
    np.testing.assert_allclose(remade.apply(variables, x), linen.CBAM().apply(variables, x), 1e-6)
    assert linen.CBAM().clone(kernel_size=5).kernel_size == 5


def test_one_seed_draws_flaxs_parameters_in_linen_too():
    x = jnp.ones((2, 5, 24))
    for options in ({}, {"normalize_qk": True, "use_bias": False}, {"qkv_features": 16}):
        options = {"num_heads": 4, "bias_init": flax_linen.initializers.normal(), **options}
        theirs, ours = (
            cls(**options).init(jax.random.key(0), x)
            for cls in (flax_linen.MultiHeadAttention, linen.MultiHeadAttention)
        )
        assert jax.tree.structure(theirs) == jax.tree.structure(ours)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_default_attention_function_is_kept():
    module = nnx.MultiHeadAttention(4, 8, rngs=flax_nnx.Rngs(0))
    assert pickle.loads(pickle.dumps(module)).attention_fn is dot_product_attention
