"""What is private, unstable or different between versions of JAX.

Written for JAX 0.10.2 to 0.12.0.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Spec = tuple[tuple[str, ...], ...]
"""The mesh axes that split each dimension of an array."""


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The mesh axes of a surrounding `shard_map` along which an array differs between devices."""
    aval = jax.typeof(x)
    if hasattr(aval, "mat"):  # JAX 0.10 on
        return aval.mat.varying
    return getattr(aval, "vma", frozenset())


def vary_together(arrays: list[jax.Array]) -> list[jax.Array]:
    """Make arrays differ along the same mesh axes, as `shard_map` wants of operands."""
    axes = frozenset().union(*(varying_axes(x) for x in arrays))
    return [
        jax.lax.pcast(x, missing, to="varying")
        if (missing := tuple(sorted(axes - varying_axes(x))))
        else x
        for x in arrays
    ]


NO_MESH = AbstractMesh((), ())


def lower_without_mesh(
    function: Callable[..., Any], ctx: mlir.LoweringRuleContext, args: Any
) -> Any:
    """Lower a function of arrays as if there were no mesh.

    The types of an explicit mesh or of `shard_map` would forbid loops over what they split.
    """
    avals: Any = ctx.avals_in
    plain = [jax.core.ShapedArray(x.shape, x.dtype) for x in avals]
    lower = mlir.lower_fun(function, multiple_results=True)
    with jax.sharding.use_abstract_mesh(NO_MESH):
        return lower(ctx.replace(avals_in=plain), *args)


def is_divided(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether XLA's partitioner will divide the module being lowered among several devices.

    False within a `shard_map` over all axes of its mesh and within `pmap`: shapes are local there.
    """
    context: Any = ctx.module_context.axis_context
    manual = getattr(context, "manual_axes", None)
    if manual is not None:  # shard_map; the other axes of its mesh are left to XLA
        return math.prod(n for name, n in context.mesh.shape.items() if name not in manual) > 1
    return getattr(context, "num_devices", 1) > 1


class Divisible(Protocol):
    """A computation that can be divided among devices."""

    def whole(self, *args: jax.Array) -> tuple[jax.Array, ...]:
        """All of it."""

    def rule(self) -> tuple[str, tuple[str, ...]]:
        """Its sharding rule in the notation of Shardy, and the factors that may not be split."""

    def share(
        self, mesh: dict[str, int], args: list[Spec], results: list[Spec]
    ) -> tuple[Callable[..., Any], list[Spec], list[Spec]]:
        """What one device computes of its parts of the operands, and how all is split for that.

        Args:
          mesh: The sizes of the mesh axes.
          args: How XLA proposes to split the operands.
          results: How XLA proposes to split the results.
        """


def divide(
    ctx: mlir.LoweringRuleContext, computation: Divisible
) -> tuple[Callable[..., Any], mlir.LoweringRuleContext] | None:
    """A function that tells XLA's partitioner how to divide it, to be lowered in a new context.

    None where the partitioner cannot be told: within a `shard_map` over some axes of a mesh, in
    `jax.export`, where the devices are not known, and without Shardy.
    """
    module = ctx.module_context
    context = module.axis_context
    count = getattr(context, "num_devices", 0)
    # JAX names the devices of a module only for primitives of its own. The partitioner uses no more
    # than their count, so that any will do.
    devices = _devices(module.platforms[0])[:count]
    if (
        hasattr(context, "manual_axes")
        or module.lowering_parameters.for_export
        or len(devices) < count
        or not jax.config.jax_use_shardy_partitioner
    ):
        return None

    def partition(mesh: Any, args: Any, results: Any) -> Any:
        del mesh
        mesh, specs = _fitting_mesh(devices, [*args, *results])
        local, args, results = computation.share(
            dict(mesh.shape), specs[: len(args)], specs[len(args) :]
        )

        def run(*arrays: jax.Array) -> Any:
            with jax.sharding.use_abstract_mesh(NO_MESH):
                jaxpr = jax.make_jaxpr(local)(*arrays)
                return tuple(without_locations_p.bind(*arrays, jaxpr=jaxpr))

        def shardings(specs: list[Spec]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs)

        return mesh, run, shardings(results), shardings(args)

    rule, whole = computation.rule()
    split = custom_partitioning(computation.whole)
    split.def_partition(
        partition, sharding_rule=rule, need_replication_factors=whole, decode_shardings=False
    )
    known = type(context)(count, tuple(devices))
    return split, ctx.replace(module_context=module.replace(axis_context=known))


def _lower_without_locations(ctx: mlir.LoweringRuleContext, *args: Any, jaxpr: Any) -> Any:
    """Lower without the lines of Python that each operation comes from.

    XLA puts the program of a part into the whole, but reads its stack frames in the table of the
    whole. What it finds there can be long, and with jaxlib 0.12.0 compilation may not end.
    """
    from jax._src.config import traceback_in_locations_limit

    with traceback_in_locations_limit(0):
        caches = type(ctx.module_context.traceback_caches)()
    module = ctx.module_context.replace(traceback_caches=caches)
    lower = mlir.lower_fun(jaxpr_as_fun(jaxpr), multiple_results=True)
    return lower(ctx.replace(module_context=module), *args)


without_locations_p = Primitive("without_locations")
without_locations_p.multiple_results = True
without_locations_p.def_abstract_eval(lambda *args, jaxpr: jaxpr.out_avals)
mlir.register_lowering(without_locations_p, _lower_without_locations)


def _devices(platform: str) -> list[Any]:
    try:
        return jax.devices(platform)
    except RuntimeError:  # a platform that is compiled for, and is not here
        return []


def _fitting_mesh(devices: list[Any], arrays: Sequence[Any]) -> tuple[Mesh, list[Spec]]:
    """A mesh that expresses the shardings of all arrays, and the mesh axes of their dimensions.

    XLA no longer knows the axes of the program's mesh. Axes of prime size also express its splits
    of one axis into several.
    """
    for sizes in _factorings(len(devices)):
        names = tuple(f"axis{i}" for i in range(len(sizes)))
        mesh = Mesh(np.array(devices).reshape(sizes), names)
        try:
            return mesh, [_spec(x, mesh) for x in arrays]
        except (AssertionError, KeyError, ValueError):
            continue
    found = [x.sharding for x in arrays]
    raise NotImplementedError(
        f"dot_product_attention: XLA splits the arguments in a way that no mesh of "
        f"{len(devices)} devices expresses: {found}. Constrain them by "
        f"jax.lax.with_sharding_constraint."
    )


def _spec(x: Any, mesh: Mesh) -> Spec:
    """The mesh axes of each dimension."""
    from jax._src.sharding_impls import parse_flatten_op_sharding

    spec = parse_flatten_op_sharding(x.sharding._to_xla_hlo_sharding(len(x.shape)), mesh)[0]
    axes = tuple((p,) if isinstance(p, str) else tuple(p or ()) for p in spec)
    return (*axes, *((),) * (len(x.shape) - len(axes)))


def _factorings(number: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as an ordered product of primes."""
    if number == 1:
        yield ()
    for prime in range(2, number + 1):
        if number % prime == 0 and all(prime % n for n in range(2, prime)):
            for rest in _factorings(number // prime):
                yield (prime, *rest)


def is_captured(module: Any) -> bool:
    """Whether an NNX module runs inside `nnx.capture`.

    Flax 0.12 has no public way to ask. `Module.sow` itself looks for this attribute.
    """
    return hasattr(module, "__captures__")
