"""What all placements share: an axis of a mesh, an inner implementation, letters and their axes."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from jax import lax
from jax.sharding import Mesh

from flax_attn._jax import varying_axes
from flax_attn.attention._core.implementation import Implementation, Results, Target
from flax_attn.attention._core.placement import Placement
from flax_attn.attention._core.primitive import attend
from flax_attn.attention._core.problem import Problem, Structure
from flax_attn.attention._core.selection import Choice, as_candidates, select
from flax_attn.attention.dense import Dense
from flax_attn.coords import Coords

Needed = Callable[[int], tuple[int, ...] | None]
"""From a number of shards to the shifts that a mask needs; see `needed_shifts`. None = all."""


@dataclasses.dataclass(frozen=True, repr=False)
class AxisPlacement(Placement):
    """Attention that is split along one axis of a mesh.

    A subclass says by `axes` how each array is split, and computes the part of one device in
    `forward`, `tangent` and `transpose`, with collectives along the axis.
    """

    axis: str
    inner: Choice = None
    is_outermost: ClassVar[bool] = False  # whether it cannot be the inner of another placement
    split_sides: ClassVar[tuple[str, ...]] = ("queries", "keys", "values")  # along the axis

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.axis, str):
            raise TypeError(
                f"{name}: axis must be the name of a mesh axis, got {self.axis!r}. For several "
                f'axes nest placements: Ulysses("near", inner=Ring("far")).'
            )
        if isinstance(self.inner, Placement):
            if not self.accepts(self.inner):
                raise ValueError(
                    f"{name}: inner must be a placement that can stand inside another, got "
                    f"{self.inner!r}. Turn them round."
                )
            if self.within and self.axis in self.within.all_axes:
                raise ValueError(
                    f"{name}: axis must be another than those of inner, got {self.axis!r} twice."
                )
        elif self.inner is not None:
            object.__setattr__(self, "inner", as_candidates(name, self.inner))

    def accepts(self, inner: Any) -> bool:
        """Whether another placement may be the inner one."""
        return isinstance(inner, AxisPlacement) and not inner.is_outermost

    @property
    def name(self) -> str:
        """Its expression."""
        return repr(self)

    def __repr__(self) -> str:
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}
        given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
        return f"{type(self).__name__}({', '.join([repr(self.axis), *given])})"

    @property
    def within(self) -> "AxisPlacement | None":
        """The inner placement, if there is one."""
        return self.inner if isinstance(self.inner, AxisPlacement) else None

    @property
    def chain(self) -> "tuple[AxisPlacement, ...]":
        """This placement and those within, from the outermost."""
        return (self, *(self.within.chain if self.within else ()))

    @property
    def all_axes(self) -> tuple[str, ...]:
        """The mesh axes of this placement and of those within."""
        return tuple(placement.axis for placement in self.chain)

    @property
    def token_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the keys."""
        return self.axes("bskd").get("s", ())

    @property
    def size(self) -> int:
        """The number of devices along the axis; within `shard_map` only."""
        return lax.axis_size(self.axis)

    @property
    def differentiable(self) -> Implementation:
        """The same placement of the dense formula."""
        inner = self.within.differentiable if self.within else Dense()
        return dataclasses.replace(self, inner=inner)

    # ---- how arrays are split

    def axes(self, letters: str) -> dict[str, tuple[str, ...]]:
        """The mesh axes that split each letter of an array with these letters, slow to fast."""
        raise NotImplementedError

    def spread(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape `[*B, N, T, S]` of an array bias or mask of one device."""
        shape = self.widened(shape)
        return self.within.spread(shape) if self.within else shape

    def widened(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`spread` of this placement alone."""
        return shape

    def first_block(self, problem: Problem) -> Problem:
        """The first problem that the innermost implementation computes."""
        problem = self.arrived(problem)
        return self.within.first_block(problem) if self.within else problem

    def arrived(self, problem: Problem) -> Problem:
        """`first_block` of this placement alone."""
        return problem

    def parts(self, letter: str, mesh: Mesh) -> int:
        """In how many parts the placement cuts queries (t), keys (s) or heads (n)."""
        letters = {"t": "btnd", "s": "bskd", "n": "bn"}[letter]
        count = 1
        for axis in self.axes(letters).get(letter, ()):
            count *= mesh.shape[axis]
        return count

    def with_shifts(self, needed: Needed, mesh: Mesh) -> "AxisPlacement":
        """The same placement, which leaves out what the mask does not need."""
        if self.within is None:
            return self
        return dataclasses.replace(self, inner=self.within.with_shifts(needed, mesh))

    def on(self, mesh: Mesh, *, batch: Any = None, heads: str | None = None) -> Placement:
        """The same placement for arrays of all devices, outside `shard_map`.

        Args:
          mesh: The mesh.
          batch: The mesh axis that splits the first batch axis, or several in a tuple.
          heads: The mesh axis that splits the heads.

        Returns:
          A placement for `placement=`. Tokens are padded to a multiple of the devices.

        Raises:
          ValueError: If a mesh axis does not exist, or is used twice.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from flax_attn import dot_product_attention, sharded
          >>> mesh = jax.make_mesh((4, 2), ("seq", "heads"))
          >>> x = jnp.ones((1, 16, 2, 8))
          >>> placement = sharded.Ring("seq").on(mesh, heads="heads")
          >>> dot_product_attention(x, x, x, is_causal=True, placement=placement).shape
          (1, 16, 2, 8)
        """
        from flax_attn.sharded._on_mesh import OnMesh

        return OnMesh.of(self, mesh, batch, heads)

    # ---- within shard_map

    def check(self, function: str) -> None:
        """Raise unless a surrounding `shard_map` has the axes."""
        for axis in self.all_axes:
            if axis not in jax.sharding.get_abstract_mesh().manual_axes:
                raise ValueError(
                    f"{function}: placement {self!r} must be used within shard_map over the mesh "
                    f"axis {axis!r}. For arrays of all devices give the mesh: {self!r}.on(mesh)."
                )

    def check_problem(self, function: str, problem: Problem) -> None:
        """Raise if the placement cannot compute a problem of one device."""
        if problem.plan is not None:
            raise ValueError(
                f"{function}: plan must be left out with the placement {self!r}, which finds the "
                f"blocks of each device by itself."
            )
        if self.within:
            self.within.check_problem(function, problem)

    def attend(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> Results:
        """Output and LSE of this device's queries."""
        del coords
        self.check_problem(function, problem)
        self.check_varying(function, problem)
        return attend(problem, (self,))

    def on_a_device(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> tuple[Problem, tuple[Implementation, ...], list[str]]:
        """The first block of a device's problem, for `explain`."""
        del coords
        self.check_problem(function, problem)
        leaves, structure = Structure.of(problem)

        def first(leaves: list[jax.Array]) -> list[jax.Array]:
            return Structure.of(self.first_block(structure.problem(leaves)))[0]

        block = structure.problem(jax.eval_shape(first, leaves))
        remarks = (placement.remarks(block, Target(None)) for placement in self.chain)
        lines = [line for some in remarks for line in some]
        return block, as_candidates(function, self.chain[-1].inner), lines

    def remarks(self, problem: Problem, target: Target) -> list[str]:
        """What `explain` says of this placement; within `shard_map` only."""
        del problem, target
        return []

    def check_varying(self, function: str, problem: Problem) -> None:
        """Raise if the wrong sides differ between the devices of the axis.

        This is known unless the user's `shard_map` has `check_vma=False`.
        """
        if self.within:
            self.within.check_varying(function, problem)
        if self.axis not in varying_axes(lax.axis_index(self.axis)):
            return
        sides = {"queries": problem.query, "keys": problem.key, "values": problem.value}
        found = tuple(side for side, x in sides.items() if self.axis in varying_axes(x.values))
        if found != self.split_sides:
            raise ValueError(
                f"{function}: placement {self!r} must have {', '.join(self.split_sides)} that "
                f"differ between the devices of {self.axis!r}, and nothing else, got "
                f"{', '.join(found) or 'nothing'}. Split them by in_specs. If only the keys are "
                f"split, as in decoding, use AllReduce({self.axis!r}); if only the queries are, no "
                f"placement is needed."
            )

    def compute(self, problem: Problem, target: Target) -> Implementation:
        """The inner implementation of a block."""
        if self.within:
            return self.within
        candidates = as_candidates("dot_product_attention", self.inner)
        return select("dot_product_attention", problem, candidates, target)
