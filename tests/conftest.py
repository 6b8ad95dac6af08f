"""Eight CPU devices, strict dtype and rank promotion, and quick compilation, in every test."""

import os

from tests import compilation

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:  # CI's parity sets it
    os.environ["XLA_FLAGS"] += " " + compilation.flags(compilation.QUICK)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Run a test in 64-bit precision."""
    with jax.enable_x64(True):
        yield
