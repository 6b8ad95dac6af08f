"""What an implementation of attention is."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax

from flax_attn.attention._core.problem import Problem
from flax_attn.masks import Plan

Results = tuple[jax.Array, jax.Array]
"""The output `[*B, T, N, Dv]` and the LSE `[*B, T, N]`, or derivatives of both."""


class Target(NamedTuple):
    """What a program is compiled for.

    Attributes:
      platform: "cpu", "cuda", "rocm" or "tpu"; None for any other, and before compilation.
      partitioned: Whether XLA splits batch and heads over devices, so that no loop may cut them.
      is_part: Whether the problem has a part of the keys, so that its derivatives are terms of a
        sum. They are then computed in the dtype of scores, and rounded once, by the caller.
      lse_cotangent: Whether the LSE may have a cotangent other than 0.
      device: The kind of device, such as "NVIDIA H100 80GB HBM3"; None if it is not known.
      compute_capability: That of an NVIDIA GPU, such as (9, 0); None if it is not known.
      is_exported: Whether the program is serialized by `jax.export`.
    """

    platform: str | None
    partitioned: bool = False
    is_part: bool = False
    lse_cotangent: bool = True
    device: str | None = None
    compute_capability: tuple[int, int] | None = None
    is_exported: bool = False


class Implementation:
    """One way to compute attention. A subclass is a frozen dataclass of hashable settings.

    To add one, write a subclass in a file of its own, and add an instance to
    `flax_attn.attention._registry`.

    Derivatives are with respect to leaves of the problem, by the numbers of `Structure.of`.

    Attributes:
      aliases: Other names than `name`.
      is_placement: Whether it is the `placement=` of a call instead.
      divisible: Whether XLA splits its program over devices well. If not, it is given the part of
        one device, cut by the letters of the leaves.
    """

    aliases: ClassVar[tuple[str, ...]] = ()
    is_placement: ClassVar[bool] = False
    divisible: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Its name in `implementation=` and in messages."""
        raise NotImplementedError

    @property
    def differentiable(self) -> "Implementation | None":
        """What JAX differentiates for second derivatives; None = the fallback."""
        return None

    def declines(self, problem: Problem, target: Target) -> str | None:
        """Why it cannot compute a problem on a target; None if it can.

        Before compilation `target.platform` is None. Then return only a reason that holds on every
        platform.
        """
        del problem, target
        return None

    def defers(self, problem: Problem, target: Target) -> str | None:
        """Why another implementation is likely to be faster, or None.

        It is not asked when the user names implementations.
        """
        del problem, target
        return None

    def block_map(self, problem: Problem, target: Target) -> Plan | None:
        """The blocks of pairs that it computes; None if it has no blocks."""
        del problem, target
        return None

    def remarks(self, problem: Problem, target: Target) -> list[str]:
        """What `explain` says of it where it is chosen, a sentence each."""
        del problem, target
        return []

    def forward(self, problem: Problem, target: Target) -> Results:
        """Output and LSE."""
        raise NotImplementedError

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """The derivatives of output and LSE along tangents of some leaves.

        `results` are the output and LSE of all keys. The problem may have some of the keys only:
        the derivatives of all parts then add up to those of the whole.
        """
        raise NotImplementedError

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves `active`, given those of output and LSE.

        Those of all parts of the keys add up, as in `tangent`.
        """
        raise NotImplementedError
