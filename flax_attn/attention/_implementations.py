"""Which implementation serves a problem on a platform, and why the others do not."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from flax_attn.attention import blockwise, dense
from flax_attn.attention._problem import Problem

Arrays = Sequence[jax.Array]


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
      declines: Why it cannot serve a problem on a platform, or None.
      better_left: Why another one is likely to be faster, or None: `implementation=None` then looks
        further.
      forward: Output and LSE, of leaves, their tree and the platform.
      tangent: The derivative along some leaves, given output and LSE too.
      transpose: Its transpose.
      divisible: Whether XLA can divide it among devices by itself. If not, it is divided by the
        letters of the problem's leaves.
    """

    declines: Callable[[Problem, str | None], str | None]
    better_left: Callable[[Problem, str | None], str | None]
    forward: Callable[..., Arrays]
    tangent: Callable[..., Arrays]
    transpose: Callable[..., Arrays]
    divisible: bool = False


# In the order in which `implementation=None` prefers them. The last takes what the others leave.
IMPLEMENTATIONS = {
    "blockwise": Implementation(
        blockwise.declines,
        blockwise.better_left,
        blockwise.run_forward,
        blockwise.run_tangent,
        blockwise.run_transpose,
    ),
    "dense": Implementation(
        dense.declines,
        dense.better_left,
        dense.run_forward,
        dense.run_tangent,
        dense.run_transpose,
        divisible=True,
    ),
}
ALIASES = {"xla": "dense"}
# The names that callers of other libraries know.
ABSENT = ("cudnn", "pallas_gpu", "pallas_tpu")


def check_names(function: str, implementation: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of the implementations to try in order; none for whatever is best."""
    if implementation is None:
        return ()
    names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if not names:
        raise ValueError(f"{function}: implementation must name at least one, got an empty list.")
    for name in names:
        if name not in (*IMPLEMENTATIONS, *ALIASES, *ABSENT):
            known = ", ".join(repr(n) for n in (*IMPLEMENTATIONS, *ALIASES))
            raise ValueError(f"{function}: implementation must be one of {known}, got {name!r}.")
    return tuple(ALIASES.get(name, name) for name in names)


def choose(function: str, problem: Problem, names: tuple[str, ...], platform: str | None) -> str:
    """The first implementation of `names` that takes the problem; for no names, the best.

    Raises:
      NotImplementedError: If the only one that is named declines.
      ExceptionGroup: If there are several and all decline.
    """
    refusals = {}
    for name in names or IMPLEMENTATIONS:
        reason = declines(name, problem, platform)
        if reason is None and not names:
            reason = IMPLEMENTATIONS[name].better_left(problem, platform)
        if reason is None:
            return name
        refusals[name] = NotImplementedError(f"{function}: {name!r} declines: {reason}")
    if not names:
        return next(n for n in reversed(IMPLEMENTATIONS) if declines(n, problem, platform) is None)
    if len(refusals) == 1:
        raise next(iter(refusals.values()))
    raise ExceptionGroup(f"{function}: every implementation declines", list(refusals.values()))


def declines(name: str, problem: Problem, platform: str | None) -> str | None:
    """Why an implementation cannot serve a problem, or None."""
    if name in ABSENT:
        return f"it is not part of this version, which has {', '.join(IMPLEMENTATIONS)}."
    return IMPLEMENTATIONS[name].declines(problem, platform)
