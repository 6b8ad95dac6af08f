"""Masks and their algebra."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import Record


class Mask:
    """Who may see whom: a relation between the coordinates of a query and of a key.

    `mask(q, k)` is True where the query attends; `q` and `k` are records whose fields
    (`q.positions`, `k.segment_ids`, any feature) broadcast against each other. Masks combine by
    `&`, `|`, `^` and `~`. They are pytrees without shapes: numbers are leaves, so a window's size
    may be traced.
    """

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """True where the query attends to the key."""
        raise NotImplementedError

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other) if isinstance(other, Mask) else _refuse(other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if isinstance(other, Mask) else _refuse(other)

    def __xor__(self, other: "Mask") -> "Mask":
        return Xor(self, other) if isinstance(other, Mask) else _refuse(other)

    def __rand__(self, other: Any) -> "Mask":
        return _refuse(other)

    __ror__ = __rxor__ = __rand__

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a Mask has no truth value: combine masks by & | ^ ~, not by and, or, not.")


def _refuse(other: Any) -> Mask:
    raise TypeError(
        f"a Mask combines with a Mask, got {type(other).__name__}. Wrap an array: "
        f"masks.Dense(array)."
    )


@pytree
class And(Mask):
    """Both: `a & b`."""

    first: Mask
    second: Mask

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        return self.first(q, k) & self.second(q, k)

    def __repr__(self) -> str:
        return " & ".join(_bracket(part, And) for part in (self.first, self.second))


@pytree
class Or(Mask):
    """Either: `a | b`."""

    first: Mask
    second: Mask

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        return self.first(q, k) | self.second(q, k)

    def __repr__(self) -> str:
        return " | ".join(_bracket(part, Or) for part in (self.first, self.second))


@pytree
class Xor(Mask):
    """One of both: `a ^ b`."""

    first: Mask
    second: Mask

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        return self.first(q, k) ^ self.second(q, k)

    def __repr__(self) -> str:
        return " ^ ".join(_bracket(part, Xor) for part in (self.first, self.second))


@pytree
class Not(Mask):
    """Whom the other hides: `~a`."""

    mask: Mask

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        return ~self.mask(q, k)

    def __repr__(self) -> str:
        return f"~{_bracket(self.mask, Not)}"


def _bracket(mask: Mask, outer: type) -> str:
    compound = isinstance(mask, And | Or | Xor) and not isinstance(mask, outer)
    return f"({mask!r})" if compound else repr(mask)


@pytree
class Relation(Mask):
    """A mask made by `relation`."""

    parameters: dict[str, Any]
    function: Callable[..., Bool[Array, "..."]] = static()

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        seen = self.function(q, k, **self.parameters)
        if not hasattr(seen, "dtype"):
            seen = jnp.asarray(seen)
        if seen.dtype != jnp.bool_:
            raise TypeError(
                f"{self.function.__name__}: a relation must return booleans, got {seen.dtype}."
            )
        return seen

    def __repr__(self) -> str:
        values = (f"{name}={show_value(x)}" for name, x in self.parameters.items())
        return f"{self.function.__name__}({', '.join(values)})"


def relation(function: Callable[..., Bool[Array, "..."]]) -> Callable[..., Mask]:
    """Make a mask of a function of two token records.

    Args:
      function: Called as `function(q, k, **parameters)`; returns True where the query attends. It
        must work elementwise: `q` and `k` broadcast against each other, and it is evaluated on
        tiles of any size. Arrays that it needs are parameters, not captured.

    Returns:
      A function of the parameters, which become leaves, that returns a `Mask`.

    Example:
      >>> from flax_attn import masks
      >>> @masks.relation
      ... def near(q, k, *, radius):
      ...     return abs(q.positions - k.positions) <= radius
      >>> near(radius=5) & masks.Causal()
      near(radius=5) & Causal()
    """

    def make(**parameters: Any) -> Mask:
        return Relation(parameters, function)

    make.__name__, make.__doc__ = function.__name__, function.__doc__
    return make
