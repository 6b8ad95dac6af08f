"""The switch between the rewrites and their plain formulas."""

import contextlib
import contextvars
from collections.abc import Iterator

_enabled = contextvars.ContextVar("flax_attn._cpu.enabled", default=True)


def is_enabled() -> bool:
    """Whether the rewrites are used in what is traced now."""
    return _enabled.get()


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Use the plain formulas instead of the rewrites in what is traced inside, to compare them.

    The switch is read while a function is traced, differentiated and lowered. Do all three inside.
    `jax.jit` does not know of the switch and reuses what it traced before, so jit a new function
    inside:

      with _cpu.disabled():
          plain = jax.jit(lambda x: vision.simam(x)).lower(x).compile()

    A program that was compiled before or inside can be called anywhere.
    """
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)
