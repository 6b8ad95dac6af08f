"""Which implementation computes a problem on a target, and why the others do not."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from flax_attn._functions import kind_of
from flax_attn.attention import _registry
from flax_attn.attention._core.implementation import Implementation, Target
from flax_attn.attention._core.problem import Problem

Choice = str | Implementation | Sequence[str | Implementation] | None
"""What `implementation=` takes."""


def as_candidates(function: str, choice: Choice) -> tuple[Implementation, ...]:
    """The implementations to try, in order. An empty tuple means that the best is chosen.

    Raises:
      ValueError: If a name is unknown, or the sequence is empty.
      TypeError: If one is neither a name nor an implementation.
    """
    if choice is None:
        return ()
    choices: Sequence[Any] = choice if isinstance(choice, list | tuple) else [choice]
    if not choices:
        raise ValueError(f"{function}: implementation must name at least one, got an empty list.")
    return tuple(_as_implementation(function, one) for one in choices)


def _as_implementation(function: str, choice: Any) -> Implementation:
    if isinstance(choice, type):
        raise TypeError(
            f"{function}: implementation must be a name or an object, got the class "
            f"{choice.__name__}. Call it: {choice.__name__}()."
        )
    if isinstance(choice, Implementation):
        if choice.is_placement:
            raise TypeError(
                f"{function}: implementation must be that of one device, got the placement "
                f"{choice.name}. Give it as placement=..."
            )
        if not dataclasses.is_dataclass(choice) or type(choice).__hash__ is None:
            raise TypeError(
                f"{function}: implementation {type(choice).__name__} must be a frozen dataclass, "
                f"which is hashed and compared by value."
            )
        return choice
    if not isinstance(choice, str):
        raise TypeError(
            f"{function}: implementation must be a name or an object, got {kind_of(choice)}."
        )
    for implementation in (*_registry.REGISTRY, *_registry.ABSENT):
        if choice in (implementation.name, *implementation.aliases):
            return implementation
    names = [name for x in _registry.REGISTRY for name in (x.name, *x.aliases)]
    known = ", ".join(map(repr, names))
    raise ValueError(f"{function}: implementation must be one of {known}, got {choice!r}.")


def verdicts(
    problem: Problem, candidates: tuple[Implementation, ...], target: Target
) -> Iterator[tuple[Implementation, str | None]]:
    """Every candidate in order, with the reason why it does not compute the problem, or None.

    Without candidates, all registered implementations are asked, and each may defer to a faster
    one.
    """
    for implementation in candidates or _registry.REGISTRY:
        reason = implementation.declines(problem, target)
        if reason is None and not candidates:
            reason = implementation.defers(problem, target)
        yield implementation, reason


def select(
    function: str,
    problem: Problem,
    candidates: tuple[Implementation, ...],
    target: Target,
) -> Implementation:
    """The first candidate that computes the problem.

    Raises:
      NotImplementedError: If the only candidate declines.
      ExceptionGroup: If there are several and all decline.
    """
    refusals = []
    for implementation, reason in verdicts(problem, candidates, target):
        if reason is None:
            return implementation
        message = f"{function}: {implementation.name!r} declines: {reason}"
        refusals.append(NotImplementedError(message))
    if len(refusals) == 1:
        raise refusals[0]
    raise ExceptionGroup(f"{function}: every implementation declines", refusals)


def refuse_early(function: str, problem: Problem, candidates: tuple[Implementation, ...]) -> None:
    """Raise, before anything is compiled, if all candidates decline on every platform."""
    if candidates:
        select(function, problem, candidates, Target(None))
