"""Sowing inside `nnx.capture` only: elsewhere it would grow the module at each call.

Flax has no public way to ask whether a module is being captured; `nnx.capture` marks the modules
with the attribute that `Module.sow` itself looks for.
"""

from typing import Any

from flax import nnx


def is_captured(module: nnx.Module) -> bool:
    """Whether `module` runs inside `nnx.capture`."""
    return hasattr(module, "__captures__")


def sow(module: nnx.Module, name: str, value: Any) -> None:
    """Store `value` if `module` runs inside `nnx.capture`."""
    if is_captured(module):
        module.sow(nnx.Intermediate, name, value)


def sow_on_request(module: nnx.Module, name: str, value: Any) -> None:
    """Store `value`, which was asked for; raise outside `nnx.capture`."""
    if not is_captured(module):
        raise ValueError(
            f"{type(module).__name__}: {name} can be sown only inside nnx.capture. Write "
            f"nnx.capture(model, nnx.Intermediate)(...)."
        )
    module.sow(nnx.Intermediate, name, value)
