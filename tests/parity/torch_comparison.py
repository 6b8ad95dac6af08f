"""Runs a PyTorch module and our three faces of it on the same numbers, and compares them."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx as flax_nnx
from torch_reference import keep_biased_variance, nn, torch

from tests.compilation import QUICK

# How far we may be from PyTorch: outputs, gradients of every input and new statistics relative to
# the largest entry of each array, gradients of weights to the largest of them all. In bfloat16 the
# output only, from PyTorch's float64 result on the same rounded inputs.
TOLERANCES = {"float64": 1e-12, "float32": 5e-6, "bfloat16": 2e-2}
# Weights that differ by 10 % must move the output by more than this.
SENSITIVITY = 5e-5

FACES = ("function", "linen", "nnx")


@dataclasses.dataclass(frozen=True)
class Case:
    """One mechanism: a randomised PyTorch module, and ours with places for its weights.

    `params` and `statistics` read arrays off a PyTorch module into our trees; what is read is an
    argument, so that gradients travel as weights do.
    """

    reference: nn.Module
    call: Callable[..., Any]  # the reference on inputs in our layout
    inputs: tuple[np.ndarray, ...]
    params: Callable[[nn.Module, Callable], dict]
    function: Callable[..., jax.Array]  # (params, statistics, *inputs)
    linen: Callable[[Any], Any]  # dtype -> module
    nnx: Callable[[Any], Any]
    statistics: Callable[[nn.Module], dict] = lambda module: {}
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the modules' call
    train: bool = False
    promotes: bool = False  # whether Flax's layers take statistics in evaluation, too
    invisible: tuple[str, ...] = ()  # weights on which the output cannot depend


@contextlib.contextmanager
def precision(case, name, dtype):
    """64 bits for float64, and standard promotion where Flax's own layers need it.

    They promote bfloat16 inputs to float32 parameters, and a float64 batch to float32 statistics.
    Functions hold under strict promotion.
    """
    with contextlib.ExitStack() as stack:
        if dtype == "float64":
            stack.enter_context(jax.enable_x64(True))
        if name != "function" and (case.train or case.promotes or dtype == "bfloat16"):
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
        yield


# It changes no number that is compared here, and takes a quarter of the time, which is most of it.
compiled = functools.partial(jax.jit, compiler_options=QUICK)


def values(tensor):
    return tensor.detach().numpy().copy()


def gradients(parameter):
    return parameter.grad.numpy().copy()


def random_arrays(seed, *shapes):
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal(shape) for shape in shapes)


def flatten(tree, prefix):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join((prefix, jax.tree_util.keystr(path, simple=True, separator="/"))): np.asarray(leaf)
        for path, leaf in leaves
    }


def run_torch(case, dtype):
    """The reference's output, gradients and new statistics, by name, and the output's cotangent."""
    dtype = getattr(torch, dtype)
    module = keep_biased_variance(copy.deepcopy(case.reference)).to(dtype).train(case.train)
    inputs = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in case.inputs]
    output = case.call(module, *inputs)
    (cotangent,) = random_arrays(1, output.shape)
    output.backward(torch.tensor(cotangent, dtype=dtype))
    results = {"output": values(output)}
    results |= flatten([gradients(x) for x in inputs], "inputs")
    results |= flatten(case.params(module, gradients), "params")
    results |= flatten(case.statistics(module), "batch_stats")
    return results, cotangent


def face(case, name, dtype):
    """`apply(params, statistics, *inputs) -> output, new statistics` of one of our faces."""

    def function(params, statistics, *inputs):
        return case.function(params, statistics, *inputs), {}

    def linen(params, statistics, *inputs):
        variables = {"params": params, "batch_stats": statistics}
        mutable = ["batch_stats"] if case.train else []
        output, new = case.linen(dtype).apply(variables, *inputs, mutable=mutable, **case.options)
        return output, new.get("batch_stats", {})

    def nnx(params, statistics, *inputs):
        abstract = flax_nnx.eval_shape(lambda: case.nnx(dtype))
        (abstract.train if case.train else abstract.eval)()
        graphdef, *states = flax_nnx.split(abstract, flax_nnx.Param, flax_nnx.BatchStat)
        for state, tree in zip(states, (params, statistics), strict=True):
            assert jax.tree.structure(flax_nnx.to_pure_dict(state)) == jax.tree.structure(tree)
            flax_nnx.replace_by_pure_dict(state, tree)
        module = flax_nnx.merge(graphdef, *states)
        output = module(*inputs, **case.options)
        new = flax_nnx.to_pure_dict(flax_nnx.state(module, flax_nnx.BatchStat))
        return output, new if case.train else {}

    return {"function": function, "linen": linen, "nnx": nnx}[name]


def run_ours(case, name, dtype, cotangent):
    """Our output, gradients and new statistics, by the same names."""
    arrays = [case.params(case.reference, values), case.statistics(case.reference), case.inputs]
    apply = face(case, name, None)

    @compiled
    def run(params, statistics, inputs, cotangent):
        def forward(params, inputs):
            return apply(params, statistics, *inputs)

        output, pullback, new = jax.vjp(forward, params, inputs, has_aux=True)
        return output, *pullback(cotangent), new

    arrays = jax.tree.map(functools.partial(jnp.asarray, dtype=dtype), arrays)
    output, params, inputs, new = run(*arrays, jnp.asarray(cotangent, dtype))
    chex.assert_type(output, dtype)
    results = {"output": np.asarray(output)} | flatten(inputs, "inputs") | flatten(params, "params")
    return results | flatten(new, "batch_stats")


def difference(actual, expected, scale=None):
    """max |actual − expected|, relative to max |expected|."""
    actual, expected = (np.asarray(array, np.float64) for array in (actual, expected))
    chex.assert_equal_shape([actual, expected])
    chex.assert_tree_all_finite(actual)
    chex.assert_tree_all_finite(expected)
    return float(np.max(np.abs(actual - expected)) / (scale or np.max(np.abs(expected))))


def differences(case, name, dtype):
    """How far our output, gradients and new statistics are from PyTorch's, by name."""
    expected, cotangent = run_torch(case, dtype)
    with precision(case, name, dtype):
        actual = run_ours(case, name, dtype, cotangent)
    if name == "function" or not case.train:  # functions keep nothing; evaluation changes nothing
        expected = {key: array for key, array in expected.items() if "batch_stats" not in key}
    assert actual.keys() == expected.keys()
    # A weight's gradient is a sum that may cancel, to nothing where the output cannot depend on the
    # weight: it is measured against the largest gradient of any weight.
    weights = [array for key, array in expected.items() if key.startswith("params")]
    largest = max((np.max(np.abs(array)) for array in weights), default=None)
    return {
        key: difference(actual[key], expected[key], largest if key.startswith("params") else None)
        for key in expected
    }


def bfloat16_difference(case, name):
    """How far our bfloat16 output is from PyTorch's float64 output on the same rounded inputs."""
    rounded = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), float), case.inputs)
    expected, _ = run_torch(dataclasses.replace(case, inputs=rounded), "float64")
    params = case.params(case.reference, values)
    params, statistics = jax.tree.map(jnp.float32, (params, case.statistics(case.reference)))
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in rounded]
    with precision(case, name, "bfloat16"):
        output, _ = compiled(face(case, name, jnp.bfloat16))(params, statistics, *inputs)
    chex.assert_type(output, jnp.bfloat16)
    return difference(output, expected["output"])


def sensitivities(case, name):
    """How far 10 % of noise on each weight and statistic moves our output from PyTorch's."""
    expected, _ = run_torch(case, "float64")
    generator = np.random.default_rng(2)
    moved = {}
    with precision(case, name, "float64"):
        apply = compiled(face(case, name, None))
        variables = case.params(case.reference, values), case.statistics(case.reference)
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.float64, variables))
        keys = [*flatten(variables[0], "params"), *flatten(variables[1], "batch_stats")]
        for i, key in enumerate(keys):
            if case.train and key.startswith("batch_stats"):
                continue  # training reads the batch's statistics
            # Of either sign: a kernel before a batch normalisation may be scaled for nothing.
            noise = 0.1 * generator.choice([-1.0, 1.0], leaves[i].shape)
            noisy = [*leaves[:i], leaves[i] * (1 + noise), *leaves[i + 1 :]]
            output, _ = apply(*jax.tree.unflatten(tree, noisy), *map(jnp.asarray, case.inputs))
            moved[key] = difference(output, expected["output"])
    return moved


def check_parity(case, name, dtype, record_property):
    """Compare, and leave the largest difference in the JUnit report."""
    found = differences(case, name, dtype)
    record_property("difference", max(found.values()))
    too_far = {key: far for key, far in found.items() if far > TOLERANCES[dtype]}
    assert not too_far, f"more than {TOLERANCES[dtype]} from PyTorch: {too_far}"


def check_bfloat16(case, name, record_property):
    found = bfloat16_difference(case, name)
    record_property("difference", found)
    assert found <= TOLERANCES["bfloat16"]


def check_sensitivity(case, name, record_property):
    """The output depends on each weight and statistic, or cannot."""
    moved = sensitivities(case, name)
    assert moved, "the case has no weight"
    still = {
        key: far for key, far in moved.items() if key.removeprefix("params/") in case.invisible
    }
    assert len(still) == len(case.invisible)
    assert all(far <= TOLERANCES["float64"] for far in still.values()), still
    moving = {key: far for key, far in moved.items() if key not in still}
    record_property("difference", min(moving.values()))
    assert all(far > SENSITIVITY for far in moving.values()), moving
