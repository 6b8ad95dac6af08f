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


def pytest_configure(config):
    """Keep compiled programs, for other workers and for the next run.

    Most of the tests' time is compilation, and most programs are one operation each. A program is
    found again by its text, the options of XLA and the versions, so a kept one is never stale.
    `pytest --cache-clear` removes them.
    """
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return
    options = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for programs that tests start


@pytest.fixture
def x64():
    """Run a test in 64-bit precision."""
    with jax.enable_x64(True):
        yield
