"""What compilers for TPUs need."""

import os

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def flags_they_know():
    """libtpu reads XLA_FLAGS when it first compiles, and aborts where it meets a CPU's."""
    jax.devices("cpu")  # has read them now
    known = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith("--xla_cpu")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", " ".join(known))
        yield
