"""Products of layers equal those of lax; gradients of kernels in half precision are exact."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx
from jax import lax

from flax_attn._cpu.products import dot_general
from flax_attn.linen._layers import Dense
from flax_attn.nnx._layers import Linear, LinearGeneral
from tests.tolerances import GRADIENT, assert_close

AXES = (((3,), (0,)), ((), ()))


def draw(*shape, dtype="float32"):
    return np.random.default_rng(list(shape)).exponential(size=shape).astype(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_gradient_of_a_kernel_is_summed_in_float32(dtype):
    """Of 2,304 positive terms, which bfloat16 adds up to 5 to 15 % too little."""
    x, kernel, cotangent = (
        draw(*s, dtype=dtype) for s in ((1, 48, 48, 16), (16, 24), (1, 48, 48, 24))
    )
    cotangent = cotangent / cotangent.dtype.type(64)  # sums that float16 has
    product = lambda x, k: dot_general(x, k, AXES)
    found = jax.jit(lambda x, k, c: jax.vjp(product, x, k)[1](c))(x, kernel, cotangent)
    wide = [np.asarray(a, np.float64) for a in (x, kernel, cotangent)]
    expected = (
        np.einsum("bhwo,co->bhwc", wide[2], wide[1]),
        np.einsum("bhwc,bhwo->co", wide[0], wide[2]),
    )
    for actual, gradient in zip(found, expected, strict=True):
        chex.assert_type(actual, dtype)
        difference = np.asarray(actual, np.float64) - gradient
        assert np.linalg.norm(difference) < 0.005 * np.linalg.norm(gradient)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_product_of_lax_with_its_derivatives(dtype):
    x, kernel = draw(2, 3, 4, 5, dtype=dtype), draw(5, 6, dtype=dtype)

    def derivatives(f, x, kernel):
        slope = jax.grad(lambda k: jnp.sum(f(x, k) ** 3))
        return (
            f(x, kernel),
            jax.jvp(f, (x, kernel), (x, kernel)),
            jax.vmap(f)(jnp.stack([x, -x]), jnp.stack([kernel, kernel])),
            jax.grad(lambda k: jnp.sum(slope(k)))(kernel),
        )

    ours, theirs = (
        jax.jit(functools.partial(derivatives, f))(x, kernel)
        for f in (
            lambda x, k: dot_general(x, k, AXES, precision=None),
            lambda x, k: lax.dot_general(x, k, AXES),
        )
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(actual, expected, GRADIENT[dtype])


@pytest.mark.parametrize(
    "layer",
    [
        lambda **options: Linear(4, 2, rngs=flax_nnx.Rngs(0), **options),
        lambda **options: LinearGeneral(4, 2, rngs=flax_nnx.Rngs(0), **options),
        lambda **options: Dense(2, **options).bind(
            {"params": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
        ),
    ],
    ids=["Linear", "LinearGeneral", "Dense"],
)
def test_a_product_that_was_asked_for_is_taken(layer):
    x = jnp.ones((3, 4))

    def twice(*args, **settings):
        return 2 * lax.dot_general(*args, **settings)

    chex.assert_trees_all_equal(layer(dot_general=twice)(x), 2 * layer()(x))


def test_a_layer_is_its_copy():
    """Linen copies a layer with the fields that it has."""
    layer = Dense(2).copy(name="other")
    assert isinstance(layer, flax_linen.Dense)
    assert layer.dot_general is dot_general
    assert layer.init(jax.random.key(0), jnp.ones((3, 4)))["params"].keys() == {"kernel", "bias"}
