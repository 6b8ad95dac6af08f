"""Sums over height and width as sums of longer rows.

XLA for CPUs sums over all places of an image `[B, H, W, C]` one row of C channels after another.
Rows of some thousand numbers, which hold several places, are added faster.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.barriers import separate
from flax_attn._cpu.switch import is_enabled
from flax_attn._devices import devices_dependent

MIN_SIZE = 2**21  # numbers in an image; smaller images gain nothing
MIN_ROW, MAX_ROW = 1024, 4096  # numbers in a row


def spatial_sum(x: jax.Array) -> jax.Array:
    """Sum over height and width: `[*B, H, W, C]` -> `[*B, C]`."""
    count = places_per_row(x) if is_enabled() else 1
    return _plain(x) if count == 1 else _sum_in_rows(count, x)


def _plain(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=(-3, -2))


def places_per_row(x: jax.Array) -> int:
    """How many places of an image make a row; 1 leaves the sum to XLA."""
    *_, height, width, features = x.shape
    if not all(isinstance(size, int) for size in x.shape) or any(jax.typeof(x).sharding.spec):
        return 1  # symbolic, or split among devices
    if x.dtype == jnp.float32 and x.size >= MIN_SIZE:
        for count in range(-(-MIN_ROW // features), MAX_ROW // features + 1):
            if height * width % count == 0:
                return count
    return 1


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers use it
def _sum_in_rows(count: int, x: jax.Array) -> jax.Array:
    """The sum of rows of `count` places, then of the places of the remaining row.

    Only on one device: rows would join what lies on several.
    """

    def in_rows(x: jax.Array) -> jax.Array:
        *batch, height, width, features = x.shape
        rows = x.reshape(*batch, height * width // count, count * features)
        (sums,) = separate(jnp.sum(rows, axis=-2))
        return jnp.sum(sums.reshape(*batch, count, features), axis=-2)

    on_cpus = functools.partial(devices_dependent, one=in_rows, several=_plain)
    return lax.platform_dependent(x, cpu=on_cpus, default=_plain)


@_sum_in_rows.defjvp
def _sum_in_rows_jvp(
    count: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The tangent of the plain sum: XLA broadcasts its cotangent faster to an image than to rows.
    return _sum_in_rows(count, *primals), _plain(*tangents)
