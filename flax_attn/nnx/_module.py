"""What the modules share: the keys they are made with, and how they are pickled."""

import dataclasses
import functools
import importlib
from typing import Any, Self

from flax import nnx


class Module(nnx.Module):
    """`flax.nnx.Module`, which refuses keys of JAX, and can be pickled.

    JAX's activation functions are compiled functions, which pickle refuses. They are stored by
    their names.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Check the keys before anything is drawn from them."""
        if _is_ours(cls) and "rngs" in options and not isinstance(options["rngs"], nnx.Rngs):
            raise TypeError(
                f"{cls.__name__}: rngs must be an nnx.Rngs, got {type(options['rngs']).__name__}. "
                f"Wrap a key or a seed: rngs=nnx.Rngs(key)."
            )
        return super().__new__(cls)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, for pickle and copy."""
        return {name: _to_name(value) for name, value in super().__getstate__().items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From the attributes."""
        super().__setstate__({name: _from_name(value) for name, value in state.items()})


def _is_ours(cls: type) -> bool:
    """Whether `rngs` means what it does here; a subclass may have a constructor of its own."""
    constructor = getattr(cls, "__init__")  # noqa: B009  mypy finds cls.__init__ unsound
    return constructor.__module__.partition(".")[0] == __name__.partition(".")[0]


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function of JAX, as where it is found."""

    module: str
    name: str

    def __call__(self) -> Any:
        """The function. Only what can be called may stand in a `functools.partial`."""
        return _find(self.module, self.name)


def _to_name(value: Any) -> Any:
    if type(value) is functools.partial:
        return functools.partial(_to_name(value.func), *value.args, **value.keywords)
    name = getattr(value, "__name__", None)
    if callable(value) and isinstance(name, str):
        for module in ("jax.nn", "jax.numpy", value.__module__):
            if _find(module, name) is value:
                return _Name(module, name)
    return value


def _from_name(value: Any) -> Any:
    if type(value) is functools.partial:
        return functools.partial(_from_name(value.func), *value.args, **value.keywords)
    return value() if isinstance(value, _Name) else value


def _find(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name, None)
