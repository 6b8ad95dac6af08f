"""Each test fails when the plain formula is as good as the rewrite for CPUs: then delete it.

    python -m pytest -m workaround -n 0 -p no:cacheprovider tests/workarounds

Without the cache provider, programs are compiled anew. Time is processor time, and memory is what
the compiled program allocates for temporaries. The files of `flax_attn/_cpu` say what was measured.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flax_attn import _cpu, dot_product_attention, masks
from flax_attn._cpu.bias import add_bias
from flax_attn._cpu.convolution import convolve
from flax_attn._cpu.maximum import maximum
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn._cpu.products import dot_general
from flax_attn._cpu.weighted_sum import weighted_sum
from flax_attn.attention.blockwise import schedule
from flax_attn.vision import scse, simam
from flax_attn.vision._gates import apply_gate
from flax_attn.vision._pooling import spatial_mean
from tests.compiled import every_collective
from tests.workarounds.comparison import gain

pytestmark = [
    pytest.mark.workaround,
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA for CPUs"),
]

FASTER = 1.2
SMALLER = 0.5  # images
IMAGE = (4, 56, 56, 128)
LAYOUT = ("NHWC", "HWIO", "NHWC")
LAST = (((3,), (0,)), ((), ()))


def conv(groups):
    return lambda x, kernel: convolve(
        x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=groups
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_channels(dtype):
    found = gain(conv(1), (8, 112, 112, 2), (7, 7, 2, 1), dtype=dtype, backward=False)
    assert found.time > FASTER


def test_depthwise():
    assert gain(conv(64), (2, 56, 56, 64), (5, 5, 1, 64)).time > FASTER


def test_grouped_convolution():
    assert gain(conv(16), (1, 28, 28, 64), (3, 3, 4, 64)).time > FASTER


def test_grouped_convolution_on_several_devices():
    """XLA gathers the batch (openxla/xla#47945)."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x = jax.ShapeDtypeStruct((8, 14, 14, 128), jnp.float32, sharding=split)
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 128), jnp.float32)
    with _cpu.disabled():
        plain = jax.jit(lambda x, kernel: conv(32)(x, kernel)).lower(x, kernel).compile()
    assert every_collective(plain)
    rewritten = jax.jit(conv(32)).lower(x, kernel).compile()
    assert not every_collective(rewritten)


@pytest.mark.parametrize("shape", [(4, 1, 1, 128), (4, 56, 56, 1)])
def test_elementwise(shape):
    assert gain(apply_gate, IMAGE, shape, dtype="bfloat16").images > SMALLER


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weighted_sum(dtype):
    found = gain(lambda x, w: weighted_sum(x, w, (-3, -2)), IMAGE, (4, 56, 56, 1), dtype=dtype)
    assert found.images > SMALLER


@pytest.mark.parametrize("axis", [-1, (-3, -2)])
def test_maximum(axis):
    assert gain(lambda x: maximum(x, axis), IMAGE, dtype="bfloat16").images > SMALLER


def test_reread():
    """A mean of an image that is read again, as in every gate of channels."""

    def gated(x):
        return apply_gate(x, spatial_mean(x)[:, None, None].astype(x.dtype))

    assert gain(gated, IMAGE, dtype="bfloat16", backward=False).images > SMALLER


def test_one_channel():
    found = gain(lambda x, k: dot_of_one(x, k, LAST), IMAGE, (128, 1), dtype="bfloat16")
    assert found.images > SMALLER


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arithmetic_of_simam(dtype):
    assert gain(simam, IMAGE, dtype=dtype).images > SMALLER


def test_squared_deviation():
    assert gain(simam, IMAGE, dtype="bfloat16", backward=False).images > SMALLER


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arithmetic_of_scse(dtype):
    identity = lambda u: u
    project = lambda kernel: lambda u: jnp.sum(u * kernel, -1, keepdims=True)
    function = lambda x, kernel: scse(x, identity, identity, project(kernel))
    assert gain(function, IMAGE, (1, 1, 1, 128), dtype=dtype).images > SMALLER


@pytest.mark.skipif(jax.__version_info__ >= (0, 12), reason="jaxlib 0.12 cuts bfloat16 well")
def test_half_precision_loops():
    def attend(q, k, v):
        return dot_product_attention(q, k, v, is_causal=True, implementation="blockwise")

    assert gain(attend, *[(2, 1024, 8, 64)] * 3, dtype="bfloat16").images > SMALLER


def error_of_kernel_gradient(product):
    """Relative error of a sum of 2,304 positive terms in bfloat16."""
    x, cotangent = (jnp.full((1, 48, 48, n), 1.01, jnp.bfloat16) for n in (16, 24))
    kernel = jnp.ones((16, 24), jnp.bfloat16)
    gradient = jax.jit(lambda k: jax.vjp(lambda k: product(x, k, LAST), k)[1](cotangent)[0])(kernel)
    exact = 2304 * float(x[0, 0, 0, 0]) ** 2
    return abs(float(jnp.mean(gradient.astype(jnp.float32))) / exact - 1)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="jaxlib 0.10 sums in float32")
def test_products():
    assert error_of_kernel_gradient(lax.dot_general) > 0.02
    assert error_of_kernel_gradient(dot_general) < 0.005


def test_bias():
    def gradient():
        y, bias = jnp.ones((1, 64, 64, 8), jnp.bfloat16), jnp.zeros(8, jnp.bfloat16)
        total = lambda bias: jnp.sum(add_bias(y, bias), dtype=jnp.float32)
        return jax.jit(jax.grad(total))(bias)[0]

    assert gradient() == 4096
    with _cpu.disabled():
        assert gradient() < 4000


def test_the_blocks_of_a_constant_mask(monkeypatch):
    """Without the barrier XLA finds them while it compiles."""
    mask = masks.Dense(np.random.default_rng(0).random((4096, 4096)) < 0.5)
    x = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)

    def compilation():
        attend = jax.jit(lambda x: dot_product_attention(x, x, x, mask=mask))
        start = time.process_time()
        attend.lower(x).compile()
        return time.process_time() - start

    rewritten = compilation()
    monkeypatch.setattr(schedule, "_not_folded", lambda leaf: leaf)
    assert compilation() > FASTER * rewritten
