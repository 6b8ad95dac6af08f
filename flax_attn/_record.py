"""What a mask or a score modifier sees of the queries, or of the keys."""

from collections.abc import Mapping
from typing import Any

import jax


@jax.tree_util.register_pytree_with_keys_class
class Record:
    """The coordinates of many tokens, as attributes that broadcast against the other side's.

    Every field has one rank. The last two axes are `[t, 1]` for queries and `[1, s]` for keys; the
    axes before them are heads and batch, of size 1 where nothing varies. A query's record also has
    `head_ids`, the global number of each query head.
    """

    def __init__(self, side: str, fields: Mapping[str, Any]) -> None:
        self._side = side
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})
        if name in fields:
            return fields[name]
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "numbers":
            raise MissingFieldError(
                f"the {self._side} coordinates do not show the numbers of tokens to masks and "
                f"score modifiers: dropout alone reads them. Compare positions, or give a feature "
                f"of another name: Coords.with_features(place=...)."
            )
        raise MissingFieldError(
            f"the {self._side} coordinates have no {name!r}, only {', '.join(fields) or 'nothing'}."
            f" Give {self._side}_coords: {_FIXES.get(name, _FEATURE.format(name=name))}."
        )

    def __repr__(self) -> str:
        return f"Record({self._side}: {', '.join(self._fields)})"

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Children with their names, for JAX."""
        names = tuple(self._fields)
        children = [(jax.tree_util.GetAttrKey(name), self._fields[name]) for name in names]
        return children, (self._side, names)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "Record":
        """From children, for JAX."""
        side, names = aux
        return cls(side, dict(zip(names, children, strict=True)))


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
