"""Convolutions of groups as several without groups."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 32  # channels up to which groups are cheaper joined


def blocks_of_groups(
    layout: lax.ConvDimensionNumbers, image: jax.Array, kernel: jax.Array, **settings: Any
) -> jax.Array:
    """Convolutions of some channels each, by kernels that are zero between the joined groups."""
    groups = settings.pop("feature_group_count")
    narrow = kernel.shape[layout.rhs_spec[1]]
    joined = next(
        n for n in range(1, groups + 1) if groups % n == 0 and (n * narrow >= BLOCK or n == groups)
    )
    parts = (
        lax.conv_general_dilated(
            some, _without_groups(joined, layout.rhs_spec, kernels), **settings
        )
        for some, kernels in zip(
            jnp.split(image, groups // joined, axis=layout.lhs_spec[1]),
            jnp.split(kernel, groups // joined, axis=layout.rhs_spec[0]),
            strict=True,
        )
    )
    return jnp.concatenate(list(parts), axis=layout.out_spec[1])


def _without_groups(groups: int, spec: Sequence[int], kernel: jax.Array) -> jax.Array:
    """The kernel of one group that does the same: zero from a group to another."""
    out, narrow = spec[:2]
    repeated = jnp.concatenate([kernel] * groups, axis=narrow)
    place = functools.partial(lax.broadcasted_iota, jnp.int32, repeated.shape)
    of_input = place(narrow) // kernel.shape[narrow]
    of_output = place(out) // (kernel.shape[out] // groups)
    return jnp.where(of_input == of_output, repeated, 0)
