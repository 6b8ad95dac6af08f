"""Products of inputs and a kernel, with gradients of the kernel summed in float32 on CPUs.

XLA for CPUs (seen with jaxlib 0.12.0) sums the product that is the gradient of a kernel in bfloat16
where inputs and kernel are bfloat16: 5 to 15 % too small for a few thousand places. XLA for other
platforms sums it in float32, and so does jaxlib 0.10.2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import is_wide
from flax_attn._cpu.switch import is_enabled

Settings = tuple[Any, tuple[tuple[str, Any], ...]]  # axes, and keyword arguments


def dot_general(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **settings: Any
) -> jax.Array:
    """`jax.lax.dot_general` of inputs and a kernel."""
    given = {name: value for name, value in settings.items() if value is not None}
    narrow = lhs.dtype == rhs.dtype and not is_wide(lhs)
    if not is_enabled() or not narrow or given.keys() - {"precision"}:
        return lax.dot_general(lhs, rhs, dimension_numbers, **settings)
    (of_lhs, of_rhs), (batch_lhs, batch_rhs) = dimension_numbers
    axes = ((tuple(of_lhs), tuple(of_rhs)), (tuple(batch_lhs), tuple(batch_rhs)))
    return _dot((axes, tuple(given.items())), lhs, rhs)


def _plain(settings: Settings, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    axes, keywords = settings
    return lax.dot_general(lhs, rhs, axes, **dict(keywords))


_dot = jax.custom_jvp(_plain, nondiff_argnums=(0,))


@_dot.defjvp
def _dot_jvp(
    settings: Settings, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (lhs, rhs), (dlhs, drhs) = primals, tangents
    tangent = _plain(settings, dlhs, rhs) + _tangent_by_kernel(settings, lhs, drhs)
    return _dot(settings, lhs, rhs), tangent


@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers use it
def _tangent_by_kernel(settings: Settings, lhs: jax.Array, drhs: jax.Array) -> jax.Array:
    def in_float32(lhs: jax.Array, drhs: jax.Array) -> jax.Array:
        product = _plain(settings, lhs.astype(jnp.float32), drhs.astype(jnp.float32))
        return product.astype(lhs.dtype)

    plain = functools.partial(_plain, settings)
    return lax.platform_dependent(lhs, drhs, cpu=in_float32, default=plain)
