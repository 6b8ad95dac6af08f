"""What every module promises beside its numbers: pickling, copies, bridges, and how it is made."""

import copy
import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import dot_product_attention, linen, nnx
from tests.mechanisms import facts, linen_module, mechanisms, module_class, nnx_module
from tests.runs import some_by_default

every_mechanism = pytest.mark.parametrize("name", mechanisms())
RNGS = flax_nnx.Rngs(0)


def image(name):
    x = np.random.default_rng(0).normal(size=facts(name).shape).astype(np.float32)
    return x, *facts(name).others(x)


LATENT = {"num_heads": 2, "kv_rank": 4, "nope_head_dim": 3, "rope_head_dim": 2}
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
    "LatentAttention": (
        lambda **options: nnx.LatentAttention(8, **LATENT, **options),
        lambda: linen.LatentAttention(**LATENT),
        (jnp.ones((2, 5, 8)),),
    ),
    "LearnedPositions": (
        lambda **options: nnx.LearnedPositions(16, 8, **options),
        lambda: linen.LearnedPositions(16, 8),
        (jnp.arange(5),),
    ),
}


def made_of_nnx(name):
    if name in SEQUENCES:
        return SEQUENCES[name][0](rngs=flax_nnx.Rngs(0))
    return nnx_module(name, facts(name).shape[-1])


def made_of_linen(name):
    """A module, and what it is called with."""
    if name in SEQUENCES:
        _, make, inputs = SEQUENCES[name]
        return make(), inputs
    return linen_module(name), image(name)


ALL = [*mechanisms(), *SEQUENCES]
# Of each kind of module one by default: a gate, a norm, a parameter, branches, attention, tokens.
some_modules = pytest.mark.parametrize(
    "name",
    some_by_default(
        ALL, "squeeze_excite", "bam", "simam", "selective_kernel", "halo_attention", *SEQUENCES
    ),
)


def test_these_are_all_modules():
    classes = {module_class(nnx, name).__name__ for name in mechanisms()} | set(SEQUENCES)
    assert classes | {"attention_fn"} == set(nnx.__all__)


@some_modules
def test_modules_of_nnx_are_pickled_and_copied(name):
    module = made_of_nnx(name)
    definition, state = flax_nnx.split(module)
    copied = copy.deepcopy(module)
    for other in (pickle.loads(pickle.dumps(module)), copy.copy(module), copied):
        same_definition, same_state = flax_nnx.split(other)
        if other is not copied:  # Flax copies the functions in it, too
            assert same_definition == definition  # so that jit does not trace again
        chex.assert_trees_all_equal(*(flax_nnx.to_pure_dict(s) for s in (state, same_state)))


@some_modules
def test_modules_of_linen_are_copied_as_those_of_flax_are(name):
    module, inputs = made_of_linen(name)
    copied = copy.deepcopy(module)
    assert type(copied) is type(module)
    shapes, same = (jax.eval_shape(m.init, jax.random.key(0), *inputs) for m in (module, copied))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, same)


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
    read = pickle.loads(pickle.dumps(module))
    chex.assert_trees_all_equal(*(jax.jit(m)(x) for m in (module, copy.deepcopy(module), read)))
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
    gates = pickle.loads(pickle.dumps(block.gates))
    x = np.ones((2, 4, 4, 16), np.float32)
    chex.assert_trees_all_equal(*(jax.jit(g[0])(x) for g in (block.gates, copied.gates, gates)))


@some_modules
def test_linen_modules_are_bridged_to_nnx(name):
    module, inputs = made_of_linen(name)
    expected, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
    chex.assert_equal_shape([bridge(module, *inputs), expected])


def bridge(module, *inputs):
    """What the module gives inside of NNX, in shape."""

    def call(*inputs):
        bridged = flax_nnx.bridge.ToNNX(module, rngs=flax_nnx.Rngs(0)).lazy_init(*inputs)
        return bridged(*inputs)

    return flax_nnx.eval_shape(call, *inputs)


@pytest.mark.parametrize("name", [n for n in mechanisms() if hasattr(linen_module(n), "norm")])
def test_linen_modules_with_a_norm_of_ones_own_are_bridged_to_nnx(name):
    norm = functools.partial(flax_linen.BatchNorm, use_running_average=True)
    module = module_class(linen, name)(**{**facts(name).module, "norm": norm})
    x, *others = image(name)
    chex.assert_rank(bridge(module, x, *others), x.ndim)


NOT_RANDOM = ("channel_affinity_attention", "gated_channel_transform", "simam")


@pytest.mark.parametrize("name", [*sorted({*mechanisms()} - {*NOT_RANDOM}), *SEQUENCES])
def test_keys_that_are_no_rngs_are_refused_with_the_fix(name):
    build = SEQUENCES[name][0] if name in SEQUENCES else functools.partial(nnx_module, name, 64)
    message = r"^\w+: rngs must be an nnx\.Rngs, got .*Wrap .*: rngs=nnx\.Rngs\(key\)"
    for keys in (jax.random.key(0), jax.random.PRNGKey(0), 0, {"params": 0}, None, flax_nnx.Rngs):
        with pytest.raises(TypeError, match=message):
            build(rngs=keys)


def test_unknown_options_are_refused():
    for name in mechanisms():
        with pytest.raises(TypeError, match="unexpected keyword argument 'kernel_width'"):
            nnx_module(name, facts(name).shape[-1], kernel_width=3)


@every_mechanism
def test_every_module_of_nnx_takes_channels_and_keys_and_checks_its_input(name):
    module = flax_nnx.eval_shape(lambda: nnx_module(name, facts(name).shape[-1]))
    x, *others = image(name)
    with pytest.raises(ValueError, match="channels that the module was made for"):
        module(np.concatenate([x, x], axis=-1), *others)


@pytest.mark.parametrize("cls", [nnx.SpatialAttention, nnx.TripletAttention])
def test_a_module_for_any_number_of_channels_may_do_without_it(cls):
    module = cls(rngs=flax_nnx.Rngs(0))
    run = lambda module, x: module(x)
    for features in (3, 8):
        x = jax.ShapeDtypeStruct((2, 9, 9, features), jnp.float32)
        chex.assert_equal_shape([flax_nnx.eval_shape(run, module, x), x])


def test_a_constructor_of_ones_own_may_take_any_keys():
    class Mine(nnx.ECA):
        def __init__(self, features, rngs):
            super().__init__(features, rngs=flax_nnx.Rngs(rngs))

    y = jax.eval_shape(Mine(16, rngs=jax.random.key(0)), jnp.ones((2, 4, 4, 16)))
    chex.assert_shape(y, (2, 4, 4, 16))


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
    x = np.ones((2, 4, 4, 16), np.float32)
    variables = jax.jit(linen.CBAM().init)(jax.random.key(0), x)
    remade = flax_linen.remat(linen.CBAM)(kernel_size=3)
    actual, expected = (jax.jit(m.apply)(variables, x) for m in (remade, linen.CBAM()))
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)
    assert linen.CBAM().clone(kernel_size=5).kernel_size == 5


def test_one_seed_draws_flaxs_parameters_in_linen_too():
    x = jnp.ones((2, 5, 24))
    for options in ({}, {"normalize_qk": True, "use_bias": False}, {"qkv_features": 16}):
        options = {"num_heads": 4, "bias_init": flax_linen.initializers.normal(), **options}
        theirs, ours = (
            jax.jit(cls(**options).init)(jax.random.key(0), x)
            for cls in (flax_linen.MultiHeadAttention, linen.MultiHeadAttention)
        )
        chex.assert_trees_all_equal(ours, theirs)


def test_the_default_attention_function_is_kept():
    module = nnx.MultiHeadAttention(4, 8, rngs=flax_nnx.Rngs(0))
    assert pickle.loads(pickle.dumps(module)).attention_fn is dot_product_attention
