"""The base class of masks, their algebra, and masks made from functions."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool

from flax_attn._functions import (
    by_name,
    call,
    check_function,
    check_parameters,
    from_name,
    kind_of,
    name_of,
)
from flax_attn._pytree import pytree, show_value, static
from flax_attn._record import Record


class Mask:
    """A relation between the coordinates of a query and of a key.

    `mask(q, k)` is True where the query attends to the key. `q` and `k` are records whose fields
    (`q.positions`, `k.segment_ids`, any feature) broadcast against each other. Masks combine by
    `&`, `|`, `^` and `~`. They are pytrees and do not depend on shapes. Their numbers are leaves,
    so the size of a window may be traced.

    Attributes:
      per_head: Names of the fields that may hold one number per query head, on their last axis.
      reads: What a mask without parameters reads; used in error messages.
    """

    per_head: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[str] = "positions, which are in the coordinates: Coords.arange(length)"

    def __new__(cls, *arguments: Any, **options: Any) -> "Mask":
        """Raise if a mask without parameters is given arguments."""
        has_no_fields = "__dataclass_fields__" in vars(cls) and not dataclasses.fields(cls)  # type: ignore[arg-type]
        if has_no_fields and (arguments or options):
            given = ", ".join([type(x).__name__ for x in arguments] + list(options))
            raise TypeError(
                f"{cls.__name__}: this mask has no parameters, got {given}. Write "
                f"masks.{cls.__name__}(). It reads {cls.reads}. Pass them to attention as "
                f"query_coords and key_coords."
            )
        return super().__new__(cls)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "a Mask is a relation between tokens, not an array. Pass it to attention as mask=. To "
            "see it, print(make_plan(mask, Coords.arange(length), block=(1, 1)))."
        )

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        """True where the query attends to the key."""
        raise NotImplementedError

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other) if isinstance(other, Mask) else refuse(other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if isinstance(other, Mask) else refuse(other)

    def __xor__(self, other: "Mask") -> "Mask":
        return Xor(self, other) if isinstance(other, Mask) else refuse(other)

    def __rand__(self, other: Any) -> "Mask":
        return refuse(other)

    __ror__ = __rxor__ = __rand__

    def __invert__(self) -> "Mask":
        return Not(self)

    __array_ufunc__ = None  # so that `array & mask` calls `__rand__` of the mask

    def __bool__(self) -> bool:
        raise TypeError("a Mask has no truth value. Combine masks by & | ^ ~, not by and, or, not.")

    def _no_arithmetic(self, *_: Any) -> "Mask":
        raise TypeError(
            "a Mask has no arithmetic. Combine masks by & (and), | (or), ^ (exclusive or) and "
            "~ (not)."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = _no_arithmetic
    __neg__ = __pos__ = _no_arithmetic

    def __rshift__(self, other: Any) -> "Mask":
        raise TypeError(
            "a Mask does not compose by >>, as score modifiers do. Combine masks by & | ^ ~. Masks "
            "and score modifiers are separate arguments of attention: mask=..., score_mod=..."
        )

    __rrshift__ = __rshift__


def everywhere(value: bool, q: Record, k: Record) -> Bool[Array, "..."]:
    """An array that has the same value for every pair of tokens."""
    # `q.positions` would be recorded as read, although the positions do not matter here.
    sides = (record._fields["positions"].shape for record in (q, k))
    return jnp.full(jnp.broadcast_shapes(*sides), value)


def refuse(other: Any) -> Any:
    """Raise `TypeError`: the other operand is not a mask."""
    raise TypeError(f"a Mask combines with a Mask, got {kind_of(other)}. {how_to_mask(other)}")


def how_to_mask(x: Any) -> str:
    """Advice on how to make a mask from an object of another type."""
    if isinstance(x, type) and issubclass(x, Mask):
        return f"Call it: masks.{x.__name__}()."
    if isinstance(x, Relations):
        return f"Call it with its parameters: {x.__name__}{x.signature}."
    if callable(x) and hasattr(x, "__name__"):
        return (
            "Make a relation from it: masks.relation(function)(). The function is called with the "
            "coordinates of queries and keys."
        )
    if isinstance(x, str):
        return "Masks are objects: masks.Causal(), masks.Window(127)."
    if hasattr(x, "dtype") or isinstance(x, list | tuple):
        return "Wrap an array: masks.Dense(array)."
    if x is None:
        return "Omit it, or use masks.Full()."
    return "Masks are in flax_attn.masks. For a boolean array write masks.Dense(array)."


@pytree
class And(Mask):
    """Logical and: `a & b`."""

    first: Mask
    second: Mask

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        return self.first(q, k) & self.second(q, k)

    def __repr__(self) -> str:
        return " & ".join(_bracket(part, And) for part in (self.first, self.second))


@pytree
class Or(Mask):
    """Logical or: `a | b`."""

    first: Mask
    second: Mask

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        return self.first(q, k) | self.second(q, k)

    def __repr__(self) -> str:
        return " | ".join(_bracket(part, Or) for part in (self.first, self.second))


@pytree
class Xor(Mask):
    """Exclusive or: `a ^ b`."""

    first: Mask
    second: Mask

    def __call__(self, q: Record, k: Record) -> Bool[Array, "..."]:
        return self.first(q, k) ^ self.second(q, k)

    def __repr__(self) -> str:
        return " ^ ".join(_bracket(part, Xor) for part in (self.first, self.second))


@pytree
class Not(Mask):
    """Logical not: `~a`."""

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
        name = name_of(self.function)
        seen = call(self.function, "relation", q, k, **self.parameters)
        if isinstance(seen, bool):
            seen = jnp.asarray(seen)
        if getattr(seen, "dtype", None) != jnp.bool_:
            kind = seen.dtype if hasattr(seen, "dtype") else type(seen).__name__
            raise TypeError(
                f"{name}: a relation must return booleans, got {kind}. Return True where the query "
                f"attends, for example q.positions >= k.positions."
            )
        # The rank is taken without reading a field by name, which would be recorded.
        rank = next((x.ndim for x in getattr(q, "_fields", {}).values()), seen.ndim)
        if seen.ndim == 0:
            return seen.reshape((1,) * rank)
        if seen.ndim != rank:
            raise ValueError(
                f"{name}: a relation must return an array of {rank} axes, as the fields of q and k "
                f"have, got {list(seen.shape)}. Compute it from q and k. For an array over all "
                f"pairs write masks.Dense(array)."
            )
        return seen

    def __reduce__(self) -> Any:
        return _restore, (self.parameters, by_name(self.function))

    def __repr__(self) -> str:
        values = (f"{name}={show_value(x)}" for name, x in self.parameters.items())
        return f"{name_of(self.function)}({', '.join(values)})"


def _restore(parameters: dict[str, Any], named: Any) -> Relation:
    return Relation(parameters, from_name(named))


class Relations:
    """What `relation` returns: calling it with parameters makes a mask of the function."""

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Bool[Array, "..."]]) -> None:
        functools.update_wrapper(self, function)
        self.__name__ = name_of(function)
        self.function = function
        self.__signature__ = self.signature

    @property
    def signature(self) -> inspect.Signature:
        """The signature of the function without the two records."""
        try:
            inputs = inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # some built-in functions have no signature
            return inspect.Signature()
        return inspect.Signature([x.replace(annotation=x.empty) for x in [*inputs.values()][2:]])

    def __call__(self, *arguments: Any, **parameters: Any) -> Mask:
        """The mask with these parameters."""
        if arguments:
            raise TypeError(
                f"{self.__name__}: the parameters of a relation must be given by name, "
                f"{self.__name__}{self.signature}, got {len(arguments)} by position. Attention "
                f"calls the function with the coordinates."
            )
        check_parameters(self.function, "q, k", parameters)
        return Relation(parameters, self.function)

    def __repr__(self) -> str:
        return f"relation({self.__name__})"

    def __reduce__(self) -> Any:
        return self.__qualname__  # pickled by name, as functions are

    def _refuse(self, *_: Any) -> Mask:
        return refuse(self)

    __and__ = __or__ = __xor__ = __rand__ = __ror__ = __rxor__ = __invert__ = _refuse


def relation(function: Callable[..., Bool[Array, "..."]]) -> Callable[..., Mask]:
    """Make a mask from a function of two token records.

    Args:
      function: Called as `function(q, k, **parameters)`; returns True where the query attends. It
        must work elementwise: `q` and `k` broadcast against each other, and it is evaluated on
        tiles of any size. Arrays that it needs must be parameters; it must not capture them. An
        array over batch elements, heads, queries or keys is given as `coords.Aligned`, as in
        `scores.score_mod`.

    Returns:
      A function that takes the parameters by name and returns a `Mask`, whose leaves they are.

    Raises:
      TypeError: If `function` is not a function. When the result is called: if parameters are
        missing or unknown. When attention calls the function: if it does not return booleans, or
        branches on the value of an array (`and`, `or`, `not`, `if`, `a < b < c`).

    Example:
      >>> from flax_attn import masks
      >>> @masks.relation
      ... def near(q, k, *, radius):
      ...     return abs(q.positions - k.positions) <= radius
      >>> near(radius=5) & masks.Causal()
      near(radius=5) & Causal()
    """
    check_function("relation", function, "def near(q, k, *, radius)")
    return Relations(function)
