"""`jax.lax.dot_general` for layers, with gradients of kernels that are summed in float32 on CPUs.

XLA for CPUs (seen in jaxlib 0.12) adds up the product that is the gradient of a kernel in bfloat16
where inputs and kernel are of it: 5 to 15 % off for a few thousand places. Other platforms and
versions sum in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype

Settings = tuple[Any, tuple[tuple[str, Any], ...]]  # which axes; keyword arguments


def dot_general(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **settings: Any
) -> jax.Array:
    """`jax.lax.dot_general` of inputs and a kernel."""
    asked = {name: value for name, value in settings.items() if value is not None}
    narrow = lhs.dtype == rhs.dtype != statistics_dtype(lhs.dtype)
    if not narrow or asked.keys() - {"precision"}:
        return lax.dot_general(lhs, rhs, dimension_numbers, **settings)
    (of_lhs, of_rhs), (batch_lhs, batch_rhs) = dimension_numbers
    axes = ((tuple(of_lhs), tuple(of_rhs)), (tuple(batch_lhs), tuple(batch_rhs)))
    return _dot((axes, tuple(asked.items())), lhs, rhs)


def _plain(settings: Settings, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    axes, keywords = settings
    return lax.dot_general(lhs, rhs, axes, **dict(keywords))


_dot = jax.custom_jvp(_plain, nondiff_argnums=(0,))


@_dot.defjvp
def _dot_jvp(
    settings: Settings, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (lhs, rhs), (dlhs, drhs) = primals, tangents
    change = _plain(settings, dlhs, rhs) + _change_of_kernel(settings, lhs, drhs)
    return _dot(settings, lhs, rhs), change


@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers have it
def _change_of_kernel(settings: Settings, lhs: jax.Array, drhs: jax.Array) -> jax.Array:
    def wide(lhs: jax.Array, drhs: jax.Array) -> jax.Array:
        product = _plain(settings, *(a.astype(jnp.float32) for a in (lhs, drhs)))
        return product.astype(lhs.dtype)

    plain = functools.partial(_plain, settings)
    return lax.platform_dependent(lhs, drhs, cpu=wide, default=plain)
