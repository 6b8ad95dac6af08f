"""`_cpu.disabled()` turns every rewrite into its plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import _cpu
from flax_attn._cpu.bias import add_bias
from flax_attn._cpu.convolution import convolve
from flax_attn._cpu.maximum import maximum
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn._cpu.products import dot_general
from flax_attn._cpu.squared_deviation import squared_deviation
from flax_attn._cpu.weighted_sum import weighted_sum
from flax_attn.vision import scse, simam
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean
from tests.tolerances import GRADIENT, assert_close

IMAGE = (2, 6, 5, 8)
LAST = (((3,), (0,)), ((), ()))
LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(groups):
    return lambda x, k: convolve(
        x, k, (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=groups
    )


def gates(x, kernel):
    same = lambda u: u
    return scse(x, same, same, lambda u: u @ kernel, activation_fn=same)


REWRITES = {  # a function, and the shapes of its arguments
    "a gate": (apply_gate, [IMAGE, (2, 1, 1, 8)]),
    "a bias": (add_bias, [IMAGE, (8,)]),
    "a mean": (spatial_mean, [IMAGE]),
    "a maximum": (lambda x: maximum(x, (-3, -2)), [IMAGE]),
    "a weighted sum": (lambda x, w: weighted_sum(x, w, (-3, -2)), [IMAGE, (2, 6, 5, 1)]),
    "squared deviations": (
        lambda x: squared_deviation(x, jnp.mean(x, (-3, -2), keepdims=True)),
        [IMAGE],
    ),
    "a product": (lambda x, k: dot_general(x, k, LAST), [IMAGE, (8, 3)]),
    "a product to one channel": (lambda x, k: dot_of_one(x, k, LAST), [IMAGE, (8, 1)]),
    "few channels": (conv(1), [(2, 6, 5, 2), (3, 3, 2, 1)]),
    "depthwise": (conv(8), [IMAGE, (3, 3, 1, 8)]),
    "groups": (conv(2), [IMAGE, (3, 3, 4, 8)]),
    "SimAM": (simam, [IMAGE]),
    "scSE": (gates, [IMAGE, (8, 1)]),
}
MARKS = ("separate", "reread", "custom_jvp_call", "platform_index", "devices_dependent", "remat")


def draw(*shape):
    return np.random.default_rng(list(shape)).normal(size=shape)


def traced(function, arrays):
    return str(jax.make_jaxpr(lambda *args: function(*args))(*arrays))  # a fresh function


@pytest.mark.parametrize("name", REWRITES)
def test_a_disabled_rewrite_leaves_no_trace(name):
    function, shapes = REWRITES[name]
    arrays = [draw(*shape).astype(jnp.bfloat16) for shape in shapes]
    assert any(mark in traced(function, arrays) for mark in MARKS)
    with _cpu.disabled():
        plain = traced(function, arrays)
    assert not any(mark in plain for mark in MARKS), plain


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_has_the_numbers_and_gradients_of_its_formula(name, x64):
    function, shapes = REWRITES[name]
    arrays = [draw(*shape) for shape in shapes]

    def gradients():
        loss = lambda *args: jnp.sum(jnp.sin(function(*args)))
        return jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays)))))(*arrays)

    ours = gradients()
    with _cpu.disabled():
        plain = gradients()
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert_close(actual, expected, GRADIENT["float64"])
