"""Fails when XLA for CPUs rotates as fast without the rewrite: then delete `_cpu/rotation.py`."""

import jax
import jax.numpy as jnp
import pytest

from flax_attn import positions
from tests.workarounds.comparison import gain

pytestmark = [
    pytest.mark.workaround,
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA for CPUs"),
]


def test_cosines_and_sines_are_stored():
    rotary = positions.Rotary(64, layout="interleaved")
    found = gain(lambda x: rotary(x, jnp.arange(2048)), (1, 2048, 9, 64), backward=False)
    assert found.time > 1.5
