"""Every option of every vision module does something, and the same in Linen and NNX."""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import linen, nnx
from tests.mechanisms import facts, load, mechanisms, module_class, random_variables
from tests.runs import long
from tests.tolerances import FORWARD, assert_close


def image(name):
    own = facts(name)
    shape = (3, 9, 8, 32) if own.any_size and own.shape[-1] == 32 else own.shape
    return np.random.default_rng(0).normal(0.3, 1.5, shape).astype(np.float32)


def linen_norm(**kwargs):
    return flax_linen.GroupNorm(num_groups=1, **kwargs)


def nnx_norm(features, *, rngs):
    return flax_nnx.GroupNorm(features, num_groups=1, rngs=rngs)


# A value other than the default, for Linen and for NNX where they differ.
VALUES = {
    "reduction": 2,
    "min_features": 5,
    "hidden_features": 3,
    "kernel_size": 5,
    "dilation": 2,
    "num_convs": 1,
    "combine": "multiply",
    "order": ("max", "mean"),
    "activation_fn": jax.nn.tanh,
    "gate_fn": jax.nn.hard_sigmoid,
    "e_lambda": 0.5,
    "norm": (linen_norm, nnx_norm),
    "dtype": jnp.bfloat16,
    "param_dtype": jnp.bfloat16,
    "kernel_init": jax.nn.initializers.ones,
    "bias_init": jax.nn.initializers.ones,
    "precision": "highest",
}


LAYER_OPTIONS = ("dtype", "param_dtype", "kernel_init", "bias_init")


def options(name):
    """The options of both modules, apart from what Linen alone takes."""
    names = (field.name for field in dataclasses.fields(module_class(linen, name)))
    return [name for name in names if name not in ("parent", "name", "use_running_average")]


def cases():
    return [
        (name, option)
        for name in mechanisms()
        for option in options(name)
        if option not in facts(name).untried
    ]


def build(name, **chosen):
    """The Linen and the NNX module with equal options."""
    chosen = {**facts(name).module, **chosen}
    linen_options = {k: v[0] if is_pair(v) else v for k, v in chosen.items()}
    nnx_options = {k: v[1] if is_pair(v) else v for k, v in chosen.items()}
    cls = module_class(linen, name)
    if hasattr(cls, "use_running_average") and "norm" not in chosen:
        linen_options["use_running_average"] = True
    nnx_options |= facts(name).nnx
    made = module_class(nnx, name)(facts(name).shape[-1], **nnx_options, rngs=flax_nnx.Rngs(0))
    made.eval()
    return cls(**linen_options), made


def is_pair(value):
    """Whether Linen and NNX take different values."""
    return isinstance(value, tuple) and len(value) == 2 and all(map(callable, value))


def value(name, option):
    if option in facts(name).options:
        return facts(name).options[option]
    if option == "use_bias":
        return not module_class(linen, name)(**facts(name).module).use_bias
    return VALUES[option]


@pytest.mark.parametrize("name", mechanisms())
def test_linen_and_nnx_have_the_same_options_and_defaults(name):
    fields = inspect.signature(module_class(linen, name)).parameters
    others = inspect.signature(module_class(nnx, name).__init__).parameters
    inferred = {"in_features", "gating_features", "input_size"}  # by Linen, from its inputs
    own = set(others) - {"self", "rngs", "layer_options"} - inferred
    if "layer_options" in others:
        own |= set(LAYER_OPTIONS)
    assert own == set(options(name))
    for option in own - {"norm"} - (set(LAYER_OPTIONS) - set(others)):
        if option.endswith("_init"):
            continue
        assert fields[option].default == others[option].default, option


@long
@pytest.mark.parametrize(("name", "option"), cases())
def test_each_option_changes_the_module_and_equally(name, option):
    x, features = image(name), facts(name).shape[-1]
    others = facts(name).others(x)
    with jax.numpy_dtype_promotion("standard"):
        plain, _ = build(name)
        changed, made = build(name, **{option: value(name, option)})
        if option.endswith("_init") or option == "param_dtype":
            if option == "bias_init" and "use_bias" in options(name):
                changed, made = build(name, use_bias=True, bias_init=VALUES["bias_init"])
                plain, _ = build(name, use_bias=True)
            before, after = (
                m.init(jax.random.key(0), x, *others)["params"] for m in (plain, changed)
            )
            assert flat(before) != flat(after)
            assert kinds(after) == kinds(
                flax_nnx.to_pure_dict(flax_nnx.state(made, flax_nnx.Param))
            )
            return
        variables = random_variables(name, features, dtype=np.float32, module=changed)
        actual = changed.apply(variables, x, *others)
        other = load(made, variables)
        tolerance = FORWARD["bfloat16" if option == "dtype" else "float32"]
        assert_close(other(x, *others), actual, tolerance)
        usual = random_variables(name, features, module=plain)
        shapes, usual_shapes = (
            [np.shape(a) for a in jax.tree.leaves(v)] for v in (variables, usual)
        )
        if jax.tree.structure(variables) == jax.tree.structure(usual) and shapes == usual_shapes:
            before = plain.apply(variables, x, *others)
            assert before.shape != actual.shape or not np.allclose(
                before, actual, rtol=1e-4, atol=1e-5
            )


def flat(tree):
    return [
        (np.asarray(a, np.float32).ravel().tolist(), str(a.dtype)) for a in jax.tree.leaves(tree)
    ]


def kinds(tree):
    return [(a.shape, str(a.dtype)) for a in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", ["bam", "coordinate_attention"])
def test_the_default_norm_updates_its_statistics_as_pytorch_does(name):
    """Of a batch whose every place is 1000 or 1002: mean 1001, variance 1, a tenth of both."""
    features = 16
    kernel = {"kernel_init": jax.nn.initializers.zeros, "bias_init": jax.nn.initializers.zeros}
    cls = module_class(linen, name)
    module = cls(use_running_average=False, **kernel)
    x = np.ones((2, 1, 2, features), np.float32) * np.float32([1000, 1002])[:, None, None, None]
    variables = jax.jit(module.init)(jax.random.key(0), x)
    layer = "norm" if name == "coordinate_attention" else "reduce_norm"
    params = jax.tree.map(np.zeros_like, variables["params"])
    params["reduce"]["kernel"][0] = 1
    training = functools.partial(module.apply, mutable=["batch_stats"])
    _, updated = jax.jit(training)({**variables, "params": params}, x)
    chex.assert_trees_all_close(updated["batch_stats"][layer]["mean"], 100.1)
    chex.assert_trees_all_close(updated["batch_stats"][layer]["var"], 0.9 + 0.1, rtol=1e-5)


@pytest.mark.parametrize("name", ["bam", "coordinate_attention"])
def test_the_phase_may_be_given_at_the_call(name):
    cls, x = module_class(linen, name), image(name)
    variables = random_variables(name, 32, dtype=np.float32)
    expected = jax.jit(cls(use_running_average=True).apply)(variables, x)
    given = functools.partial(cls().apply, use_running_average=True)
    chex.assert_trees_all_equal(jax.jit(given)(variables, x), expected)
    both = functools.partial(cls(use_running_average=True).apply, variables, x)
    with pytest.raises(ValueError, match="use_running_average"):
        both(use_running_average=True)


def test_linen_modules_take_no_options_by_position():
    with pytest.raises(TypeError):
        linen.SqueezeExcite(16)
