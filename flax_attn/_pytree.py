"""Dataclasses as pytrees: numbers are leaves, settings are part of the structure."""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A field that is a setting: it must be hashable, and is not traced."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False)
def pytree(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are pytree children, except those made by `static`.

    Two objects are equal if their settings are equal, and their leaves are equal Python numbers of
    equal types: 1, 1.0 and True differ, as they compile to different programs. An object with an
    array is equal to itself only.

    Unflattening does not call `__init__`, as a transformation may replace a leaf by any object. The
    default `__repr__` shows the fields, with arrays abbreviated.
    """
    if "__repr__" not in vars(cls):
        setattr(cls, "__repr__", show)  # noqa: B010
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    setattr(cls, "__eq__", _equal)  # noqa: B010
    setattr(cls, "__hash__", _hash)  # noqa: B010
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = [f.name for f in fields if not f.metadata.get("static")]
    meta = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(x: Any) -> tuple[Any, Any]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in data]
        return children, Settings(tuple(getattr(x, name) for name in meta))

    def flatten(x: Any) -> tuple[Any, Any]:
        settings = Settings(tuple(getattr(x, name) for name in meta))
        return [getattr(x, name) for name in data], settings

    def unflatten(settings: Any, children: Any) -> Any:
        x = object.__new__(cls)
        for name, value in zip([*data, *meta], [*children, *settings.values], strict=True):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


class Settings:
    """The settings of a pytree, in a form that JAX can compare as a part of the structure.

    Attributes:
      values: The settings.
    """

    __slots__ = ("_key", "values")

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values
        self._key = _typed(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.values)


def _typed(value: Any) -> Hashable:
    """A key that is equal for equal values of equal types. Floats must have equal bits."""
    if isinstance(value, float):
        return type(value), value.hex()
    if isinstance(value, tuple | list):
        return type(value), *map(_typed, value)
    return type(value), value


def _known(x: Any) -> Hashable | None:
    """A key that is equal for equal pytrees; None if there are arrays."""
    leaves, tree = jax.tree.flatten(x)
    if all(isinstance(leaf, bool | int | float | str | np.generic) for leaf in leaves):
        return tree, *map(_typed, leaves)
    return None


def _equal(x: Any, other: object) -> bool:
    if x is other:
        return True
    if type(x) is not type(other):
        return NotImplemented
    key = _known(x)
    return key is not None and key == _known(other)


def _hash(x: Any) -> int:
    key = _known(x)
    return object.__hash__(x) if key is None else hash(key)


def show(x: Any) -> str:
    """The repr of a dataclass, `Window(left=255, right=0)`. Arrays are shown as dtype and shape."""
    parts = []
    for field in dataclasses.fields(x):
        value = getattr(x, field.name)
        if field.repr and not (field.default is None and value is None):
            parts.append(f"{field.name}={show_value(value)}")
    return f"{type(x).__name__}({', '.join(parts)})"


@functools.singledispatch
def show_value(value: Any) -> str:
    """The repr of a field."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dims = ", ".join(map(str, value.shape))
        if value.shape == () and not isinstance(value, jax.core.Tracer):
            return str(value)
        return f"{value.dtype}[{dims}]"
    return repr(value)
