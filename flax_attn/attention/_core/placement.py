"""What a placement of attention on several devices is."""

import dataclasses
from typing import Any, ClassVar, TypeVar

from flax_attn._functions import kind_of
from flax_attn.attention._core.implementation import Implementation, Results
from flax_attn.attention._core.problem import Problem
from flax_attn.attention._core.selection import Choice, as_candidates
from flax_attn.coords import Coords

Self = TypeVar("Self", bound="Placement")


class Placement(Implementation):
    """Attention whose tokens or heads are split over devices; see `flax_attn.sharded`.

    A placement is an implementation that calls another one, `inner`, on each block of keys that it
    brings to a device. A subclass is a frozen dataclass.

    Attributes:
      inner: The implementation of a block, or another placement; None chooses the best.
    """

    inner: Choice
    is_placement: ClassVar[bool] = True

    @property
    def is_local(self) -> bool:
        """Whether arrays are those of one device, within `shard_map`."""
        return True

    @property
    def token_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the keys."""
        return ()

    def check(self, function: str) -> None:
        """Raise unless the placement can be used here."""

    def spread(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape `[*B, N, T, S]` of an array bias or mask of one device.

        Args:
          shape: The shape of the scores of this device's queries and this device's keys.
        """
        return shape

    def first_block(self, problem: Problem) -> Problem:
        """The first problem that `inner` computes."""
        return problem

    def attend(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> Results:
        """Output and LSE of a problem.

        Args:
          function: The public function, for error messages.
          problem: The problem: of one device if `is_local`, otherwise the whole.
          coords: The coordinates of queries and keys that the user gave.
        """
        raise NotImplementedError

    def on_a_device(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> tuple[Problem, tuple[Implementation, ...], list[str]]:
        """What `explain` tells of one device.

        Returns:
          (the first problem that it computes, with shapes in place of arrays; the implementations
          to choose from, none = all; what else there is to say, in lines).
        """
        raise NotImplementedError

    def with_implementation(self: Self, function: str, choice: Choice) -> Self:
        """The same placement with another innermost implementation; None keeps it."""
        if choice is None:
            return self
        if isinstance(self.inner, Placement):
            changed: Any = self.inner.with_implementation(function, choice)
        elif self.inner is None:
            changed = as_candidates(function, choice)
        else:
            raise ValueError(
                f"{function}: implementation must be left out, as the placement names its own, got "
                f"{choice!r} and {self!r}. Leave one of them out."
            )
        return dataclasses.replace(self, inner=changed)  # type: ignore[type-var]


def check_placement(function: str, placement: Any) -> None:
    """Raise unless it is a placement that can be used here."""
    if not isinstance(placement, Placement):
        raise TypeError(
            f"{function}: placement must be one of flax_attn.sharded, got {kind_of(placement)}. "
            f'Write placement=sharded.Ring("seq").'
        )
    placement.check(function)
