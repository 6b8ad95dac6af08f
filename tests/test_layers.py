"""Flax's layers in our modules: theirs in all but the gradient of a bias in half precision."""

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
    parameters = holder.init(jax.random.key(0), X)
    return parameters["params"]["layer"], lambda p: holder.apply({"params": {"layer": p}}, X)


def of_nnx(module, name, **settings):
    layer = getattr(module, name)(*NNX[name], **settings, rngs=flax_nnx.Rngs(0))
    graph, state = flax_nnx.split(layer)
    return flax_nnx.to_pure_dict(state), lambda p: flax_nnx.merge(graph, flax_nnx.State(p))(X)


LAYERS = [
    *((of_linen, linen, flax_linen, name) for name in LINEN),
    *((of_nnx, nnx, flax_nnx, name) for name in NNX),
]


def weighed(apply):
    return lambda p: jnp.sum(apply(p).astype(jnp.float32).reshape(WEIGHT.shape) * WEIGHT)


@pytest.mark.parametrize(("make", "ours", "theirs", "name"), LAYERS)
def test_in_float32_they_are_flaxs(make, ours, theirs, name):
    settings = {"bias_init": INIT}
    p, apply = make(ours, name, **settings)
    q, expected = make(theirs, name, **settings)
    jax.tree.map(np.testing.assert_array_equal, p, q)
    np.testing.assert_array_equal(apply(p), expected(p))
    grads = (jax.grad(weighed(f))(p) for f in (apply, expected))
    jax.tree.map(np.testing.assert_array_equal, *grads)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("make", "ours", "theirs", "name"), LAYERS)
def test_the_gradient_of_a_bias_does_not_accumulate_in_half_precision(
    make, ours, theirs, name, dtype
):
    settings = {"bias_init": INIT, "dtype": dtype}
    p, apply = make(ours, name, **settings)
    _, expected = make(theirs, name, **settings)
    assert apply(p).dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.float32(apply(p)), np.float32(expected(p)), rtol=2 * eps, atol=8 * eps
    )
    grads = jax.grad(weighed(apply))(p)
    exact = np.asarray(WEIGHT.astype(dtype), np.float64).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(grads["bias"].reshape(-1), exact, rtol=1e-5)
    theirs = jax.grad(weighed(expected))(p)
    np.testing.assert_allclose(grads["kernel"], theirs["kernel"], rtol=2e-2, atol=2)


@pytest.mark.parametrize(("make", "ours", "theirs", "name"), LAYERS)
def test_without_a_bias_there_is_none(make, ours, theirs, name):
    p, apply = make(ours, name, use_bias=False)
    q, expected = make(theirs, name, use_bias=False)
    assert set(p) == set(q) == {"kernel"}
    np.testing.assert_array_equal(apply(p), expected(p))


def test_biases_may_have_names_of_axes():
    layer = linen.DenseGeneral((2, 4), bias_init=flax_linen.with_partitioning(INIT, ("n", "d")))
    bias = layer.init(jax.random.key(0), X)["params"]["bias"]
    assert (bias.names, bias.value.shape) == (("n", "d"), (2, 4))
