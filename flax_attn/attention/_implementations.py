"""Which implementation serves a request, and why the others do not."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from flax_attn.attention import dense
from flax_attn.attention._request import Request


class Implementation(NamedTuple):
    """One way to compute attention."""

    declines: Callable[[Request], str | None]
    attend: Callable[[Request], tuple[jax.Array, jax.Array]]


# In the order in which `implementation=None` prefers them.
IMPLEMENTATIONS = {"dense": Implementation(dense.declines, dense.attend)}
ALIASES = {"xla": "dense"}
# The names that callers of other libraries know, and what to do here.
ABSENT = ("blockwise", "cudnn", "pallas_gpu", "pallas_tpu")


def attend(
    function: str, request: Request, implementation: str | Sequence[str] | None
) -> tuple[jax.Array, jax.Array]:
    """Compute the request by the first implementation that does not decline it."""
    if implementation is None:
        names: Sequence[str] = tuple(IMPLEMENTATIONS)
    else:
        names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if not names:
        raise ValueError(f"{function}: implementation must name at least one, got an empty list.")
    for name in names:
        if name not in (*IMPLEMENTATIONS, *ALIASES, *ABSENT):
            known = ", ".join(repr(n) for n in (*IMPLEMENTATIONS, *ALIASES))
            raise ValueError(f"{function}: implementation must be one of {known}, got {name!r}.")
    refusals = []
    for name in names:
        reason = _decline(name, request)
        if reason is None:
            return IMPLEMENTATIONS[ALIASES.get(name, name)].attend(request)
        refusals.append(NotImplementedError(f"{function}: {name!r} declines: {reason}"))
    if len(refusals) == 1:
        raise refusals[0]
    raise ExceptionGroup(f"{function}: every implementation declines", refusals)


def _decline(name: str, request: Request) -> str | None:
    if name in ABSENT:
        return f"it is not part of this version, which has {', '.join(IMPLEMENTATIONS)}."
    return IMPLEMENTATIONS[ALIASES.get(name, name)].declines(request)
