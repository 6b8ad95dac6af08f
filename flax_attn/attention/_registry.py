"""The implementations of attention. A new one stands in `REGISTRY`, before `FALLBACK`."""

import dataclasses

from flax_attn.attention._core.implementation import Implementation, Target
from flax_attn.attention._core.problem import Problem
from flax_attn.attention.blockwise import Blockwise
from flax_attn.attention.cudnn import Cudnn
from flax_attn.attention.decode import Decode
from flax_attn.attention.dense import Dense
from flax_attn.attention.pallas_tpu import PallasTPU

FALLBACK = Dense()
"""It computes every problem on every platform, and JAX differentiates it for second derivatives."""

REGISTRY: tuple[Implementation, ...] = (
    Decode(),
    Cudnn(),
    PallasTPU(),
    Blockwise(),
    FALLBACK,
)
"""All implementations, in the order of preference."""


def other_than(leaving: Implementation, problem: Problem, target: Target) -> Implementation:
    """The best implementation of what one leaves to others."""
    for other in REGISTRY:
        if other.name != leaving.name:
            reason = other.declines(problem, target) or other.defers(problem, target)
            if reason is None:
                return other
    return FALLBACK


@dataclasses.dataclass(frozen=True)
class Absent(Implementation):
    """A name that users of other libraries know. It always declines."""

    wanted: str

    @property
    def name(self) -> str:
        """The name that is wanted."""
        return self.wanted

    def declines(self, problem: Problem, target: Target) -> str | None:
        """Always declines."""
        del problem, target
        present = ", ".join(implementation.name for implementation in REGISTRY)
        return f"it is not part of this version, which has {present}."


ABSENT = (Absent("pallas_gpu"),)
