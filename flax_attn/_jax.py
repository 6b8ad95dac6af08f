"""What differs between versions of JAX."""

import jax


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
