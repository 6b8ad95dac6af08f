"""What XLA for CPUs must be told to keep no copies of an image, and to convolve few channels."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype


def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays for a second use, which XLA for CPUs computes apart from the first.

    Otherwise it stores what both need, though it be as large as an image and cheap to compute:
    gates that are broadcast, an image of bfloat16 as one of float32.
    """
    return lax.platform_dependent(*arrays, cpu=_barrier, default=_identity)


def _barrier(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return lax.optimization_barrier(arrays)


def _identity(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return arrays


def again(x: jax.Array, *after: jax.Array) -> jax.Array:
    """The image, to be read once more, after others were computed; see `apart`.

    One whose dtype needs no conversion is left to XLA.
    """
    return x if statistics_dtype(x.dtype) == x.dtype else apart(x, *after)[0]


def dot_of_one(
    lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, **settings: Any
) -> jax.Array:
    """`jax.lax.dot_general` with a kernel `[C, 1]`, for Flax's layers.

    XLA for CPUs has no such product of bfloat16 and converts the image first; a sum needs no copy.
    """

    def dot(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.dot_general(lhs, rhs, dimension_numbers, **settings)

    dtype = statistics_dtype(lhs.dtype)
    asked = {name for name, value in settings.items() if value is not None} - {"precision"}
    if dtype == lhs.dtype or asked:  # a float32 sum has any precision, but no sharding or dtype
        return dot(lhs, rhs)

    @jax.checkpoint
    def summed(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        weights = rhs[:, 0].astype(dtype).reshape((1,) * (lhs.ndim - 1) + (-1,))
        total = jnp.sum(again(lhs).astype(dtype) * weights, axis=-1, keepdims=True)
        return total.astype(lhs.dtype)

    return lax.platform_dependent(lhs, rhs, cpu=summed, default=dot)


@jax.custom_jvp
def apply_gate(x: jax.Array, *gates: jax.Array) -> jax.Array:
    """x ⊙ g₁ ⊙ g₂ ..., of gates in the dtype of x whose axes have size 1 where they are constant.

    Reverse mode sums the gradient of a gate in at least float32, which JAX's own does not, and
    keeps nothing but x and the gates.
    """
    for gate in gates:
        x = x * gate
    return x


@apply_gate.defjvp
def _apply_gate_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    (x, *gates), (dx, *dgates) = primals, tangents
    dtype = statistics_dtype(x.dtype)
    change, seen, factors = jnp.zeros_like(x), x, gates
    for i, dgate in enumerate(dgates):
        seen, factors = again(seen, *factors), list(apart(*factors))
        wide = jnp.broadcast_to(dgate.astype(dtype), x.shape)  # whose transpose is a sum
        term = apply_gate(seen, *factors[:i], *factors[i + 1 :]) * wide.astype(x.dtype)
        change = again(change + term)
    return apply_gate(x, *gates), apply_gate(dx, *gates) + change


def conv_of_one(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` from a few channels to one, for Flax's layers.

    On CPUs it is a sum of shifted images `[B, H, W, C]`, which takes a fifth of the time; not with
    steps, dilations or a result of another size or dtype.
    """

    def convolved(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **settings)

    @jax.custom_jvp
    def summed(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        _, height, width, channels = lhs.shape
        rows, columns = rhs.shape[:2]
        dtype = statistics_dtype(lhs.dtype)
        planes = jnp.pad(jnp.moveaxis(lhs.astype(dtype), -1, 0), ((0, 0), (0, 0), *padding))
        kernel = rhs.astype(dtype)

        def of_row(i: jax.Array | int) -> jax.Array:
            seen = lax.dynamic_slice_in_dim(planes, i, height, axis=2)
            weights = lax.dynamic_index_in_dim(kernel, i, keepdims=False)
            return sum(
                weights[j, c, 0] * seen[c, :, :, j : j + width]
                for c in range(channels)
                for j in range(columns)
            )

        total = lax.fori_loop(1, rows, lambda i, total: total + of_row(i), of_row(0))
        return total[..., None].astype(lhs.dtype)

    @summed.defjvp
    def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (lhs, rhs), (dlhs, drhs) = primals, tangents
        return summed(lhs, rhs), convolved(dlhs, rhs) + convolved(lhs, drhs)

    shape = jax.eval_shape(convolved, lhs, rhs)
    once = all(n == 1 for n in (*window_strides, *_dilations(settings)))
    if not once or shape.dtype != lhs.dtype or shape.shape != (*lhs.shape[:-1], 1):
        return convolved(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=summed, default=convolved)


def _dilations(settings: Mapping[str, Any]) -> tuple[int, ...]:
    return (*(settings.get("lhs_dilation") or ()), *(settings.get("rhs_dilation") or ()))
