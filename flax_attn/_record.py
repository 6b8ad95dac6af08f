"""The record of coordinates that masks and score modifiers are called with."""

from collections.abc import Mapping
from typing import Any

from flax_attn._pytree import pytree, static


@pytree
class Record:
    """The coordinates of queries or of keys, as attributes that broadcast against the other side.

    All fields have the same rank. The last two axes are `[t, 1]` for queries and `[1, s]` for keys.
    The axes before them are batch and heads, of size 1 if a field does not vary along them. The
    record of queries also has `head_ids`, the global id of each query head.
    """

    _fields: dict[str, Any]
    _side: str = static()

    def __init__(self, side: str, fields: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_side", side)
        object.__setattr__(self, "_fields", dict(fields))

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name in fields:
            return fields[name]
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "numbers":
            raise MissingFieldError(
                f"masks and score modifiers cannot read the numbers of tokens of the {self._side} "
                f"coordinates; only dropout can. Compare positions, or add a feature of another "
                f"name: Coords.with_features(place=...)."
            )
        raise MissingFieldError(
            f"the {self._side} coordinates have no {name!r}, only {', '.join(fields) or 'nothing'}."
            f" Pass {self._side}_coords={_FIXES.get(name, _FEATURE.format(name=name))}."
        )

    def __repr__(self) -> str:
        return f"Record({self._side}: {', '.join(self._fields)})"


class MissingFieldError(ValueError, AttributeError):
    """A mask or score modifier reads a field that the coordinates do not carry."""


_FIXES = {
    "segment_ids": "Coords.from_segments(segment_ids)",
    "valid": "Coords.from_lengths(lengths, length)",
    "row": "Coords.grid(height, width)",
    "col": "Coords.grid(height, width)",
    "enter": "Coords.tree(parents)",
    "leave": "Coords.tree(parents)",
}
_FEATURE = "Coords.arange(length).with_features({name}=...)"
