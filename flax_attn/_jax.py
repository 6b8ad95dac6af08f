"""What differs between versions of JAX."""

import jax
from jax.interpreters import mlir


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


def divided_by_xla(context: mlir.LoweringRuleContext) -> bool:
    """Whether XLA divides the program that is being lowered among devices."""
    where = context.module_context.axis_context
    if isinstance(where, mlir.SPMDAxisContext):  # inside shard_map: by its mesh's other axes
        sizes = where.mesh.shape
        return any(size > 1 for name, size in sizes.items() if name not in where.manual_axes)
    return isinstance(where, mlir.ShardingContext) and where.num_devices > 1
