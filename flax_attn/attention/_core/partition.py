"""How XLA splits attention over devices under `jit`.

The letters of a problem's leaves are the sharding rule. Batch (b), query heads (n), key heads (k)
and queries (t) may be split: each device then computes its part of the problem as if it were alone.
Keys (s) and features are gathered if they are split. A gradient that sums over something split is
summed over devices.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._jax.division import Spec

Split = dict[str, tuple[str, ...]]
"""The mesh axes that split batch axes b0, b1, ..., query heads n, key heads k and queries t."""


class Dims(NamedTuple):
    """The dimensions of an array: a name and a size for each.

    Batch axes are b0, b1, ...; the others bear their letters.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], letters: str, batch_ndim: int) -> "Dims":
        """The dimensions of an array; no letters = it is never cut."""
        batch = [f"b{i}" for i in range(batch_ndim)]
        names = [name for x in letters for name in (batch if x == "b" else [x])]
        return cls(tuple(names) or ("",) * len(shape), shape)

    @property
    def splittable(self) -> tuple[bool, ...]:
        """Which dimensions may be split. One of size 1 is the same on all devices."""
        return tuple(
            name[:1] in ("b", "n", "k", "t") and size > 1
            for name, size in zip(self.names, self.sizes, strict=True)
        )

    def axis(self, name: str) -> int | None:
        """The index of a dimension if its size is above 1, else None."""
        axis = self.names.index(name) if name in self.names else None
        return axis if axis is not None and self.sizes[axis] > 1 else None

    def spec(self, split: Split) -> Spec:
        """The mesh axes of each dimension."""
        sizes = zip(self.names, self.sizes, strict=True)
        return tuple(split.get(name, ()) if size > 1 else () for name, size in sizes)


def sharding_rule(args: Sequence[Dims], results: Sequence[Dims]) -> tuple[str, tuple[str, ...]]:
    """The rule in Shardy's notation, and its factors that are not split, in order of appearance.

    Query heads and key heads are separate factors: there may be fewer key heads than devices.
    """
    whole: list[str] = []
    keys_stay = any("s" in dims.names for dims in results)  # gradients of keys, as keys

    def factors(dims: Dims) -> str:
        names = []
        for name, size, may in zip(*dims, dims.splittable, strict=True):
            if name == "s" and size > 1 and dims.axis("t") is None:
                names.append("s")
                if not keys_stay and "s" not in whole:
                    whole.append("s")
            elif may:
                names.append(name)
            else:
                names.append(f"w{len(whole)}")
                whole.append(names[-1])
        return " ".join(names)

    left, right = (", ".join(map(factors, arrays)) for arrays in (args, results))
    return f"{left} -> {right}", tuple(whole)


def choose_split(
    mesh: dict[str, int], dims: Sequence[Dims], specs: Sequence[Spec], groups: int
) -> Split:
    """Choose the mesh axes of each dimension: those of the first array that is split along it.

    Args:
      mesh: The sizes of the mesh axes.
      dims: The dimensions of operands and results.
      specs: The mesh axes by which XLA would split them.
      groups: G, the query heads of a key head.
    """
    split: Split = {}
    used: set[str] = set()
    for array, spec in zip(dims, specs, strict=True):
        for name, size, may, axes in zip(*array, array.splittable, spec, strict=True):
            if not may or not axes or split.get(name) or used & set(axes):
                continue
            if size % math.prod(mesh[axis] for axis in axes) == 0:
                split[name] = axes
                used |= set(axes)
    key_heads = split.pop("k", ())
    query_heads = split.setdefault("n", key_heads)
    sizes = dict(zip(*dims[0], strict=True))
    if sizes["n"] // groups % math.prod(mesh[axis] for axis in query_heads) == 0:
        split["k"] = query_heads
    return split


class Part(NamedTuple):
    """What a device needs to compute its part: which key heads, and which axes to sum over."""

    mesh: dict[str, int]
    split: Split
    num_heads: int
    groups: int

    def count(self, name: str) -> int:
        """In how many parts a dimension is split."""
        return math.prod(self.mesh[axis] for axis in self.split.get(name, ()))

    def key_heads(self) -> jax.Array | None:
        """The key heads that this device's query heads read; None if keys are split the same way.

        One head if all its query heads share it; otherwise one for each query head.
        """
        if self.split["n"] == self.split.get("k", ()):
            return None
        heads = self.num_heads // self.count("n")
        first = lax.axis_index(self.split["n"]) * heads
        step = heads if self.groups % heads == 0 else 1
        return (first + jnp.arange(0, heads, step)) // self.groups

    def total(self, gradient: jax.Array, dims: Dims, keys: tuple[str, ...]) -> jax.Array:
        """The sum over all devices that hold a part of it, in float32 or more.

        Over the axes `keys`, each device is given the sum for a part of the keys only.
        """
        followed = {axis for axes in dims.spec(self.split) for axis in axes}
        summed = [a for axes in self.split.values() for a in axes if a not in followed | set(keys)]
        if not summed and not keys:
            return gradient
        wide = gradient.astype(statistics_dtype(gradient.dtype))
        if summed:
            wide = lax.psum(wide, tuple(dict.fromkeys(summed)))
        if keys:
            axis = dims.names.index("s")
            wide = lax.psum_scatter(wide, keys, scatter_dimension=axis, tiled=True)
        return wide.astype(gradient.dtype)

    def scattered(self, dims: Dims, proposed: Spec) -> tuple[str, ...]:
        """The axes that split the queries, where XLA wants the keys' gradient split."""
        axis = dims.axis("s")
        if axis is None or dims.axis("t") is not None or not proposed[axis]:
            return ()
        return () if dims.sizes[axis] % self.count("t") else self.split.get("t", ())


class Call(NamedTuple):
    """A primitive as a function of arrays with named dimensions.

    Attributes:
      bind: Binds the primitive to operands: `bind(args, all_queries)`, with all queries of the
        problem or some of them.
      args: The dimensions of the operands, the query first.
      results: The dimensions of the results.
      groups: G, the query heads of a key head.
    """

    bind: Callable[[Sequence[jax.Array], bool], Sequence[jax.Array]]
    args: list[Dims]
    results: list[Dims]
    groups: int

    def rule(self) -> tuple[str, tuple[str, ...]]:
        """See `sharding_rule`."""
        return sharding_rule(self.args, self.results)

    def whole(self, *args: jax.Array) -> tuple[jax.Array, ...]:
        """The computation on one device."""
        return tuple(self.bind(args, True))

    def share(
        self, mesh: dict[str, int], args: list[Spec], results: list[Spec]
    ) -> tuple[Callable[..., Any], list[Spec], list[Spec]]:
        """The computation of one device, and how operands and results are split for it."""
        split = choose_split(mesh, [*self.args, *self.results], [*args, *results], self.groups)
        num_heads = dict(zip(*self.args[0], strict=True))["n"]
        part = Part(mesh, split, num_heads, self.groups)
        keys = [part.scattered(x, spec) for x, spec in zip(self.results, results, strict=True)]
        run = functools.partial(self._run, part, keys)
        args = [dims.spec(split) for dims in self.args]
        with_keys = [split | {"s": axes} for axes in keys]
        results = [x.spec(all_axes) for x, all_axes in zip(self.results, with_keys, strict=True)]
        return run, args, results

    def _run(self, part: Part, keys: list[tuple[str, ...]], *args: jax.Array) -> list[jax.Array]:
        heads = part.key_heads()
        mine = [self._take(x, dims, heads) for x, dims in zip(args, self.args, strict=True)]
        results = self.bind(mine, not part.split.get("t"))
        back = [self._give(x, dims, heads) for x, dims in zip(results, self.results, strict=True)]
        return [part.total(*each) for each in zip(back, self.results, keys, strict=True)]

    def _take(self, x: jax.Array, dims: Dims, heads: jax.Array | None) -> jax.Array:
        """The part of an array that belongs to some key heads."""
        if heads is None or (axis := dims.axis("k")) is None:
            return x
        return jnp.take(x, heads, axis=axis, mode="clip")

    def _give(self, x: jax.Array, dims: Dims, heads: jax.Array | None) -> jax.Array:
        """The transpose of `_take`."""
        if heads is None or (axis := dims.axis("k")) is None:
            return x
        shape = (*x.shape[:axis], dims.sizes[axis], *x.shape[axis + 1 :])
        wide = x.astype(statistics_dtype(x.dtype))
        total = jnp.zeros(shape, wide.dtype).at[(*(slice(None),) * axis, heads)].add(wide)
        return total.astype(x.dtype)
