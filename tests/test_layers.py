"""Flax's layers in our modules: theirs in all but the gradient of a bias in half precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn.linen import _layers as linen
from flax_attn.nnx import _layers as nnx

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 56, 56, 3)), jnp.float32)  # 12,544 places
WEIGHT = jnp.asarray(RNG.normal(1, 1, (4, 56, 56, 8)), jnp.float32)
INIT = jax.nn.initializers.normal(1.0)
LINEN = {"Dense": (8,), "DenseGeneral": ((2, 4),), "Conv": (8, (3, 3))}
NNX = {"Linear": (3, 8), "LinearGeneral": (3, (2, 4)), "Conv": (3, 8, (3, 3))}


class Holder(flax_linen.Module):
    """A layer inside of another module, of which Linen makes copies."""

    cls: type
    args: tuple
    settings: dict

    @flax_linen.compact
    def __call__(self, x):
        return self.cls(*self.args, **self.settings, name="layer")(x)


def of_linen(module, name, **settings):
    holder = Holder(getattr(module, name), LINEN[name], settings)
    parameters = jax.jit(holder.init)(jax.random.key(0), X)
    return parameters["params"]["layer"], lambda p, x: holder.apply({"params": {"layer": p}}, x)


def of_nnx(module, name, **settings):
    layer = getattr(module, name)(*NNX[name], **settings, rngs=flax_nnx.Rngs(0))
    graph, state = flax_nnx.split(layer)
    return flax_nnx.to_pure_dict(state), lambda p, x: flax_nnx.merge(graph, flax_nnx.State(p))(x)


LAYERS = [
    *((of_linen, linen, flax_linen, name) for name in LINEN),
    *((of_nnx, nnx, flax_nnx, name) for name in NNX),
]


def gradient_and_output(apply):
    """Of the weighed sum of the output."""

    def loss(p, x, weight):
        output = apply(p, x)
        return jnp.sum(output.astype(jnp.float32).reshape(weight.shape) * weight), output

    return jax.grad(loss, has_aux=True)


@pytest.mark.parametrize(("make", "ours", "theirs", "name"), LAYERS)
def test_in_float32_they_are_flaxs(make, ours, theirs, name):
    settings = {"bias_init": INIT}
    p, apply = make(ours, name, **settings)
    q, expected = make(theirs, name, **settings)
    chex.assert_trees_all_equal(p, q)
    compiled = (jax.jit(gradient_and_output(f)) for f in (apply, expected))
    chex.assert_trees_all_equal(*(f(p, X, WEIGHT) for f in compiled))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("make", "ours", "theirs", "name"), LAYERS)
def test_the_gradient_of_a_bias_does_not_accumulate_in_half_precision(
    make, ours, theirs, name, dtype
):
    settings = {"bias_init": INIT, "dtype": dtype}
    p, apply = make(ours, name, **settings)
    _, expected = make(theirs, name, **settings)
    gradient, output = gradient_and_output(apply)(p, X, WEIGHT)
    theirs, wanted = gradient_and_output(expected)(p, X, WEIGHT)
    chex.assert_type(output, dtype)
    eps = float(jnp.finfo(dtype).eps)
    output, wanted = np.float32(output), np.float32(wanted)
    chex.assert_trees_all_close(output, wanted, rtol=2 * eps, atol=8 * eps)
    exact = np.asarray(WEIGHT.astype(dtype), np.float64).sum(axis=(0, 1, 2))
    chex.assert_trees_all_close(gradient["bias"].reshape(-1), exact, rtol=1e-5)
    chex.assert_trees_all_close(gradient["kernel"], theirs["kernel"], rtol=2e-2, atol=2)


@pytest.mark.parametrize(("make", "ours", "theirs", "name"), LAYERS)
def test_without_a_bias_there_is_none(make, ours, theirs, name):
    p, apply = make(ours, name, use_bias=False)
    q, expected = make(theirs, name, use_bias=False)
    assert set(p) == set(q) == {"kernel"}
    chex.assert_trees_all_equal(*(jax.jit(f)(p, X) for f in (apply, expected)))


def test_biases_may_have_names_of_axes():
    layer = linen.DenseGeneral((2, 4), bias_init=flax_linen.with_partitioning(INIT, ("n", "d")))
    bias = layer.init(jax.random.key(0), X)["params"]["bias"]
    assert (bias.names, bias.value.shape) == (("n", "d"), (2, 4))
