"""A placement for arrays of all devices: the letters of the leaves say how they are split."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn._functions import kind_of
from flax_attn.attention._core.implementation import Implementation, Results
from flax_attn.attention._core.placement import Placement
from flax_attn.attention._core.problem import Problem, Structure, is_aligned
from flax_attn.attention._core.selection import Choice
from flax_attn.coords import Aligned, Coords
from flax_attn.sharded._exchange import Exchange
from flax_attn.sharded._placement import AxisPlacement
from flax_attn.sharded.heads import Heads
from flax_attn.sharded.shifts import shifts_of_call


@dataclasses.dataclass(frozen=True, repr=False)
class OnMesh(Placement):
    """A placement on a mesh, made by `placement.on(mesh)`.

    Attributes:
      placement: What each device does.
      mesh: The mesh.
      batch: The mesh axes that split the first batch axis.
    """

    placement: AxisPlacement
    mesh: Mesh
    batch: tuple[str, ...] = ()

    @classmethod
    def of(cls, placement: AxisPlacement, mesh: Mesh, batch: Any, heads: str | None) -> "OnMesh":
        """Check the axes, and put `Heads` round the placement if heads are split."""
        name = f"{placement!r}.on"
        if not isinstance(mesh, Mesh):
            raise TypeError(f"{name}: mesh must be a jax.sharding.Mesh, got {kind_of(mesh)}.")
        if heads is not None:
            placement = Heads(heads, inner=placement)
        is_given = batch is not None
        batch = () if batch is None else (batch,) if isinstance(batch, str) else batch
        if not isinstance(batch, tuple) or not all(isinstance(axis, str) for axis in batch):
            raise TypeError(
                f"{name}: batch must be the name of a mesh axis, or several in a tuple, got "
                f"{batch!r}."
            )
        axes = (*batch, *placement.all_axes)
        for axis in axes:
            if axis not in mesh.shape:
                known = ", ".join(f"{name!r} of {size}" for name, size in mesh.shape.items())
                raise ValueError(f"{name}: the mesh must have an axis {axis!r}, got {known}.")
            if axes.count(axis) > 1:
                raise ValueError(
                    f"{name}: each mesh axis must be used once, got {axis!r} {axes.count(axis)} "
                    f"times. Split one thing by it: tokens, heads or the batch."
                )
        # Within a shard_map over some axes, XLA leaves what is split over the others as it is for
        # the collectives of a ring, and gathers it for these.
        gathers = any(isinstance(one, Exchange) for one in placement.chain)
        kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
        auto = [x for x, kind in kinds if kind is AxisType.Auto and mesh.shape[x] > 1]
        others = [axis for axis in auto if axis not in axes]
        if gathers and others and not is_given:
            raise ValueError(
                f"{name}: the mesh axis {others[0]!r} must be named, as XLA would gather what is "
                f"split over it. Write batch={others[0]!r}, heads={others[0]!r}, or batch=() if "
                f"nothing is split over it."
            )
        return cls(placement, mesh, batch)

    @property
    def name(self) -> str:
        """Its expression."""
        return repr(self)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        batch = f", batch={self.batch}" if self.batch else ""
        return f"{self.placement!r}.on(Mesh({sizes}){batch})"

    def check(self, function: str) -> None:
        """Raise within `shard_map`."""
        if axes := jax.sharding.get_abstract_mesh().manual_axes:
            raise ValueError(
                f"{function}: placement {self!r} must be given arrays of all devices, got those of "
                f"one, within shard_map over {', '.join(axes)}. There write "
                f"placement={self.placement!r}."
            )

    @property
    def is_local(self) -> bool:
        """No: arrays are those of all devices."""
        return False

    def with_implementation(self, function: str, choice: Choice) -> "OnMesh":
        """The same placement with another innermost implementation; None keeps it."""
        inner = self.placement.with_implementation(function, choice)
        return dataclasses.replace(self, placement=inner)

    def attend(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> Results:
        """Output and LSE of all queries."""
        length_q, rank = problem.sizes[0], len(problem.batch)
        parts = self._parts(function, problem, coords)
        query = parts.problem.query.values
        specs = [self._spec(x, a, rank) for x, a in ((query, "btnd"), (query[..., 0], "btn"))]

        def on_one_device(problem: Problem) -> Results:
            return parts.placement.attend(function, problem, (None, None))

        results = parts.map(on_one_device, tuple(specs))
        if parts.problem.sizes[0] > length_q:
            if self._is_explicit:  # its types cannot say how this length is split
                whole = [_without(spec, rank) for spec in specs]
                results = [self._reshard(x, spec) for x, spec in zip(results, whole, strict=True)]
            results = [lax.slice_in_dim(x, 0, length_q, axis=rank) for x in results]
        output, lse = results
        return output, lse

    def on_a_device(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> tuple[Problem, tuple[Implementation, ...], list[str]]:
        """The first block of each device's problem, for `explain`."""
        parts = self._parts(function, problem, coords)
        found: list[Any] = []

        def on_one_device(problem: Problem) -> tuple[()]:
            found.append(parts.placement.on_a_device(function, problem, (None, None)))
            return ()

        jax.eval_shape(lambda: parts.map(on_one_device, ()))
        return found[0]

    def _parts(
        self, function: str, problem: Problem, coords: tuple[Coords | None, Coords | None]
    ) -> "Parts":
        """The problem with sizes that can be split, and how it is split."""
        counts = {x: self.placement.parts(x, self.mesh) for x in "tsn"}
        self._check_types(function, problem)
        self._check_sizes(function, problem, counts["n"])
        problem = _padded(problem, counts["t"], counts["s"])
        problem = _with_key_heads(problem, counts["n"])
        lengths = problem.sizes[:2]
        needed = functools.partial(shifts_of_call, problem.mask, coords, lengths)
        placement = self.placement.with_shifts(needed, self.mesh)
        leaves, structure = Structure.of(problem)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        rank = len(problem.batch)
        specs = [self._spec(x, a, rank) for x, a in zip(leaves, structure.letters, strict=True)]
        if self._is_explicit:
            leaves = [self._reshard(x, spec) for x, spec in zip(leaves, specs, strict=True)]

        # Other explicit axes split nothing here: the types have just been changed. JAX 0.12 cannot
        # transpose `all_gather` within a shard_map that leaves one out.
        kinds = zip(self.mesh.axis_names, self.mesh.axis_types, strict=True)
        explicit = {axis for axis, kind in kinds if kind is AxisType.Explicit}

        def over_devices(compute: Callable[[Problem], Any], out_specs: Any) -> Any:
            return jax.shard_map(
                lambda *leaves: compute(structure.problem(leaves)),
                mesh=self.mesh,
                in_specs=tuple(specs),
                out_specs=out_specs,
                axis_names={*self.batch, *placement.all_axes, *explicit},
            )(*leaves)

        return Parts(problem, placement, over_devices)

    @property
    def _is_explicit(self) -> bool:
        return AxisType.Explicit in self.mesh.axis_types

    def _reshard(self, x: jax.Array, spec: P) -> jax.Array:
        return jax.sharding.reshard(x, NamedSharding(self.mesh, spec))

    def _check_types(self, function: str, problem: Problem) -> None:
        """Raise if an array is split by an explicit mesh axis that nothing names."""
        named = {*self.batch, *self.placement.all_axes}
        for name in ("query", "key", "value"):
            spec = jax.typeof(getattr(problem, name).values).sharding.spec
            entries = ((x,) if isinstance(x, str) else x or () for x in spec)
            for axis in itertools.chain.from_iterable(entries):
                if axis not in named:
                    raise ValueError(
                        f"{function}: {name} must be split by the mesh axes of {self!r}, got "
                        f"{spec}: it would be gathered over {axis!r}. Name the axis by "
                        f"batch={axis!r} or heads={axis!r} of on(mesh), or reshard the {name}."
                    )

    def _check_sizes(self, function: str, problem: Problem, head_parts: int) -> None:
        """Raise unless batch and heads can be split."""
        batch_parts = math.prod(self.mesh.shape[axis] for axis in self.batch)
        first = problem.batch[0] if problem.batch else 1
        if first % batch_parts:
            raise ValueError(
                f"{function}: the first batch axis must be a multiple of the {batch_parts} devices "
                f"of {self.batch}, got {first}."
            )
        num_heads = problem.sizes[2]
        if num_heads % head_parts:
            raise ValueError(
                f"{function}: the number of query heads N must be a multiple of the {head_parts} "
                f"devices that split heads, got {num_heads}."
            )

    def _spec(self, x: jax.Array, letters: str, rank: int) -> P:
        """How an array is split. An axis of size 1 is not."""
        axes = self.placement.axes(letters) | {"b": self.batch}
        batch = ("b" + "-" * rank)[:rank]  # of the batch axes the first is split
        names = letters.replace("b", batch) or "-" * x.ndim
        sizes = zip(names, x.shape, strict=True)
        return P(*(axes.get(name, ()) or None if size > 1 else None for name, size in sizes))


class Parts(NamedTuple):
    """A problem that is split over devices.

    Attributes:
      problem: The whole problem, padded.
      placement: What each device does.
      map: `map(compute, out_specs)` calls `compute(problem)` on each device, with its part.
    """

    problem: Problem
    placement: AxisPlacement
    map: Callable[[Callable[[Problem], Any], Any], Any]


def _without(spec: P, axis: int) -> P:
    """How an array is split along all axes but one."""
    return P(*(None if i == axis else axes for i, axes in enumerate(spec)))


def _padded(problem: Problem, query_parts: int, key_parts: int) -> Problem:
    """The problem with lengths that can be split, and are not 0. Padded keys are not valid."""
    length_q, length_k, _, _ = problem.sizes
    missing = {
        letter: parts if length == 0 else -length % parts
        for letter, length, parts in (("t", length_q, query_parts), ("s", length_k, key_parts))
    }
    if not any(missing.values()):
        return problem
    lengths = {"t": length_q, "s": length_k}
    if missing["s"] and "valid" not in problem.key_fields:
        ones = jnp.ones((1,) * (len(problem.batch) + 1) + (length_k,), bool)
        fields = problem.key_fields | {"valid": Aligned(ones, "bns")}
        problem = dataclasses.replace(problem, key_fields=fields, may_hide=True)

    def pad(x: Any) -> Any:
        if not is_aligned(x):
            return x
        values, widths = x.values, [(0, 0)] * x.values.ndim
        for letter, count in missing.items():
            if letter in x.axes:
                axis = values.ndim + x.axes.index(letter) - len(x.axes)
                if values.shape[axis] == lengths[letter]:
                    widths[axis] = (0, count)
        return Aligned(jnp.pad(values, widths), x.axes)

    return jax.tree.map(pad, problem, is_leaf=is_aligned)


def _with_key_heads(problem: Problem, parts: int) -> Problem:
    """The problem with at least one key head for each part of the query heads."""
    _, _, num_heads, num_kv_heads = problem.sizes
    if num_kv_heads % parts == 0:
        return problem
    copies = next(
        n
        for n in range(1, num_heads // num_kv_heads + 1)
        if num_kv_heads * n % parts == 0 and num_heads % (num_kv_heads * n) == 0
    )
    key, value = (
        Aligned(jnp.repeat(x.values, copies, axis=-2), x.axes) for x in (problem.key, problem.value)
    )
    return dataclasses.replace(problem, key=key, value=value)
