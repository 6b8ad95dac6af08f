"""How XLA's partitioner divides a computation among devices, and which devices these are.

Written for JAX 0.10.2 to 0.12.0.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_attn._jax import NO_MESH, LoweringContext, lower_function, set_lowering

Spec = tuple[tuple[str, ...], ...]
"""The mesh axes that split each dimension of an array."""


def device_of(platform: str | None, ctx: LoweringContext | None = None) -> Any | None:
    """The device of a platform that a module is lowered for; None if it is not known.

    Ahead of time it is that of the topology or of `jax.set_mesh`, otherwise one of this machine.
    """
    backend = None if ctx is None else ctx.module_context.backend
    named = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    found = [] if platform is None else [*_devices(platform, backend), named]
    return found[0] if found and _is_of(found[0], platform) else None


def compute_capability(device: Any | None) -> tuple[int, int] | None:
    """That of an NVIDIA GPU, such as (9, 0); None for other devices."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found else None


def is_exported(ctx: LoweringContext) -> bool:
    """Whether a module is lowered for `jax.export`, which refuses most custom calls."""
    return bool(ctx.module_context.lowering_parameters.for_export)


class Divisible(Protocol):
    """A computation that can be divided among devices."""

    def whole(self, *args: jax.Array) -> tuple[jax.Array, ...]:
        """All of it."""

    def rule(self) -> tuple[str, tuple[str, ...]]:
        """Its sharding rule in the notation of Shardy, and the factors that may not be split."""

    def share(
        self, mesh: dict[str, int], args: list[Spec], results: list[Spec]
    ) -> tuple[Callable[..., Any], list[Spec], list[Spec]]:
        """Returns (the function of one device, specs of the operands, specs of the results).

        Args:
          mesh: The sizes of the mesh axes.
          args: How XLA proposes to split the operands.
          results: How XLA proposes to split the results.
        """


def can_divide(ctx: LoweringContext) -> bool:
    """Whether XLA's partitioner can be told how a computation is divided.

    It cannot within a `shard_map` over some axes of a mesh, in `jax.export`, where the devices are
    not known, and without Shardy.
    """
    module = ctx.module_context
    context: Any = module.axis_context
    devices = _devices(module.platforms[0], module.backend)
    return not (
        hasattr(context, "manual_axes")
        or is_exported(ctx)
        or len(devices) < getattr(context, "num_devices", 0)
        or not jax.config.jax_use_shardy_partitioner
    )


def divide(
    ctx: LoweringContext, computation: Divisible
) -> tuple[Callable[..., Any], LoweringContext]:
    """Returns a function with a partitioning rule, and the context to lower it in."""
    module = ctx.module_context
    context: Any = module.axis_context
    # JAX names the devices of a module only for primitives of its own. The partitioner uses only
    # the number of devices, so any devices will do.
    devices = _devices(module.platforms[0], module.backend)[: context.num_devices]

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
    known = type(context)(len(devices), tuple(devices))
    return split, ctx.replace(module_context=module.replace(axis_context=known))


def _lower_without_locations(ctx: LoweringContext, *args: Any, jaxpr: Any) -> Any:
    """Lower without the lines of Python that each operation comes from.

    XLA puts the program of a part into the whole, but reads its stack frames in the table of the
    whole. What it finds there can be long, and with jaxlib 0.12.0 compilation may not end.
    """
    from jax._src.config import traceback_in_locations_limit

    with traceback_in_locations_limit(0):
        caches = type(ctx.module_context.traceback_caches)()
    module = ctx.module_context.replace(traceback_caches=caches)
    return lower_function(jaxpr_as_fun(jaxpr))(ctx.replace(module_context=module), *args)


without_locations_p = Primitive("without_locations")
without_locations_p.multiple_results = True
without_locations_p.def_abstract_eval(lambda *args, jaxpr: jaxpr.out_avals)
set_lowering(without_locations_p, _lower_without_locations, None)


def _devices(platform: str, backend: Any = None) -> list[Any]:
    """The devices of a platform: those of `backend` if it is of this platform."""
    own = [] if backend is None else backend.devices()
    if own and _is_of(own[0], platform):
        return own
    try:
        return jax.devices(platform)
    except RuntimeError:  # a platform that is compiled for, and is not here
        return []


def _is_of(device: Any, platform: str | None) -> bool:
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    return getattr(device, "platform", None) == platform


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
