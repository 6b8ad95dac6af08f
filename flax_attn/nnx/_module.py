"""What the modules share: the keys they are made with, and how they are pickled."""

import dataclasses
import functools
import importlib
import inspect
from typing import Any, Self

from flax import nnx

from flax_attn._checks import check_positive


class Module(nnx.Module):
    """`flax.nnx.Module`, which refuses keys of JAX, and can be pickled.

    JAX's activation functions are compiled functions, which pickle refuses. They are stored by
    their names.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Check what all modules are made with, before anything is drawn."""
        constructor = getattr(cls, "__init__")  # noqa: B009  mypy finds cls.__init__ unsound
        if constructor.__module__.partition(".")[0] == __name__.partition(".")[0]:
            names = list(inspect.signature(constructor).parameters)[1:]
            _check(cls.__name__, dict(zip(names, args, strict=False)) | options)
        return super().__new__(cls)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, for pickle and copy."""
        return {name: _to_name(value) for name, value in super().__getstate__().items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From the attributes."""
        super().__setstate__({name: _from_name(value) for name, value in state.items()})


def _check(module: str, given: dict[str, Any]) -> None:
    if "in_features" in given:
        check_positive(module, "in_features", given["in_features"])
    if "rngs" in given and not isinstance(given["rngs"], nnx.Rngs):
        raise TypeError(
            f"{module}: rngs must be an nnx.Rngs, got {type(given['rngs']).__name__}. "
            f"Wrap a key or a seed: rngs=nnx.Rngs(key)."
        )
    norm = given.get("norm")
    if isinstance(norm, nnx.Module):
        raise TypeError(
            f"{module}: norm must make the normalisation, got one, {type(norm).__name__}. Pass the "
            f"class, or functools.partial(nnx.BatchNorm, momentum=0.9)."
        )


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
