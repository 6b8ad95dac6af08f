"""Sowing inside `nnx.capture` only: elsewhere it would grow the module at each call."""

from typing import Any

from flax import nnx


def sow(module: nnx.Module, name: str, value: Any) -> None:
    """Store `value` if `module` runs inside `nnx.capture`."""
    if hasattr(module, "__captures__"):
        module.sow(nnx.Intermediate, name, value)
