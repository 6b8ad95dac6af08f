"""Functions of an image and of fields that are broadcast to it, entry by entry."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from flax_attn._checks import is_wide, spread, statistics_dtype
from flax_attn._cpu.barriers import apart


def elementwise(function: Callable[..., jax.Array], *numbers: float) -> Callable[..., jax.Array]:
    """The function of an image and of fields, which have size 1 where they are constant.

    `function(x, *fields, *numbers)` computes each entry from those at its place, and is given
    arrays of at least float32; the result has the dtype of x. Reverse mode sums the gradients of
    the fields in at least float32 too, which that of JAX does not, and keeps nothing but x and the
    fields. The sums need no copies on CPUs if the derivatives are made of arithmetic, without
    comparisons and without other numbers than `numbers`: these XLA would spread over an image.
    """

    def narrow(x: jax.Array, *fields: jax.Array) -> jax.Array:
        dtype = statistics_dtype(x.dtype)
        operands = (x, *apart(*fields))  # which are spread over the image anew
        return function(*(a.astype(dtype) for a in operands), *numbers).astype(x.dtype)

    apply = jax.custom_jvp(narrow)

    @apply.defjvp
    def _(
        primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, jax.Array]:
        return apply(*primals), _change(function, numbers, tangents, *primals)

    return apply


@functools.partial(jax.jit, static_argnums=(0, 1))
@functools.partial(jax.checkpoint, static_argnums=(0, 1))
def _change(
    function: Callable[..., jax.Array],
    numbers: tuple[float, ...],
    tangents: tuple[jax.Array, ...],
    *primals: jax.Array,
) -> jax.Array:
    """What small changes of its arguments do to an elementwise function."""
    image = primals[0]

    def wide(array: jax.Array) -> jax.Array:  # its transpose is a sum
        return spread(array.astype(statistics_dtype(image.dtype)), image)

    def part(i: int, arrays: Sequence[jax.Array], tangent: jax.Array) -> jax.Array:
        def of_one(array: jax.Array) -> jax.Array:
            return function(*arrays[:i], array, *arrays[i + 1 :])

        return jax.jvp(of_one, (arrays[i],), (wide(tangent),))[1].astype(image.dtype)

    operands = (*primals, *(jnp.full((1,) * image.ndim, n, jnp.float32) for n in numbers))
    parts = []
    for i, tangent in enumerate(tangents):
        operands = apart(*operands)  # nothing of the size of the image is kept for the next
        parts.append(part(i, [wide(a) for a in operands], tangent))
    return functools.reduce(lambda a, b: (a if is_wide(a) else apart(a)[0]) + b, parts)
