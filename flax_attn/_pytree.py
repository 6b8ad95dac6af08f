"""Small classes as pytrees: numbers are leaves, settings are part of the structure."""

import dataclasses
import functools
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**options: Any) -> Any:
    """A field that is a setting: hashable, and the same under every transformation."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False)
def pytree(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields are pytree children, except those made by `static`.

    Unflattening does not call `__init__`: a transformation may put anything in place of a leaf.
    Where the class has no `__repr__` of its own, it shows its fields and abbreviates arrays.
    """
    if "__repr__" not in vars(cls):
        setattr(cls, "__repr__", show)  # noqa: B010
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = [f.name for f in fields if not f.metadata.get("static")]
    meta = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(x: Any) -> tuple[Any, Any]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in data]
        return children, tuple(getattr(x, name) for name in meta)

    def flatten(x: Any) -> tuple[Any, Any]:
        return [getattr(x, name) for name in data], tuple(getattr(x, name) for name in meta)

    def unflatten(settings: Any, children: Any) -> Any:
        x = object.__new__(cls)
        for name, value in zip([*data, *meta], [*children, *settings], strict=True):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def show(x: Any) -> str:
    """`Window(left=255, right=0)`; an array as its dtype and shape."""
    parts = []
    for field in dataclasses.fields(x):
        value = getattr(x, field.name)
        if field.repr and not (field.default is None and value is None):
            parts.append(f"{field.name}={show_value(value)}")
    return f"{type(x).__name__}({', '.join(parts)})"


@functools.singledispatch
def show_value(value: Any) -> str:
    """A value within a `repr`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dims = ", ".join(map(str, value.shape))
        if value.shape == () and not isinstance(value, jax.core.Tracer):
            return str(value)
        return f"{value.dtype}[{dims}]"
    return repr(value)
