"""What XLA for CPUs must be told to keep no copies of an image; what multiplies it by gates."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flax_attn._checks import expand_rank, statistics_dtype

apart_p = Primitive("apart")
apart_p.multiple_results = True


def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays for a second use, which XLA for CPUs computes apart from the first.

    Otherwise it stores what both need, though it be as large as an image and cheap to compute:
    gates that are broadcast, an image of bfloat16 as one of float32.
    """
    return tuple(apart_p.bind(*arrays, cotangents=True))


def _apart_jvp(
    primals: Sequence[jax.Array], tangents: Sequence[Any], **settings: bool
) -> tuple[list, list]:
    moving = [t for t in tangents if not isinstance(t, ad.Zero)]
    moved = iter(apart_p.bind(*moving, **settings))
    changes = [t if isinstance(t, ad.Zero) else next(moved) for t in tangents]
    return apart_p.bind(*primals, **settings), changes


def _apart_transpose(given: Sequence[Any], *arrays: Any, cotangents: bool) -> list[jax.Array]:
    whole = [ad.instantiate_zeros(cotangent) for cotangent in given]
    return apart_p.bind(*whole, cotangents=True) if cotangents else whole


apart_p.def_impl(lambda *arrays, cotangents: list(arrays))
apart_p.def_abstract_eval(lambda *arrays, cotangents: list(arrays))
ad.primitive_jvps[apart_p] = _apart_jvp
ad.primitive_transposes[apart_p] = _apart_transpose
batching.primitive_batchers[apart_p] = lambda arrays, axes, **settings: (
    apart_p.bind(*arrays, **settings),
    axes,
)
mlir.register_lowering(apart_p, lambda context, *arrays, cotangents: arrays)
mlir.register_lowering(
    apart_p,
    mlir.lower_fun(
        lambda *arrays, cotangents: lax.optimization_barrier(arrays), multiple_results=True
    ),
    platform="cpu",
)


def again(x: jax.Array, *after: jax.Array) -> jax.Array:
    """The image, to be read once more, after others were computed; see `apart`.

    One whose dtype needs no conversion is left to XLA. Its cotangent is added to others where it is
    computed: XLA (seen since jaxlib 0.12) stores what is apart.
    """
    return x if _is_wide(x) else apart_p.bind(x, *after, cotangents=False)[0]


def spread(array: jax.Array, like: jax.Array, last: int | None = None) -> jax.Array:
    """The array broadcast to an image's shape, with a last axis of another size if one is given.

    On an explicit mesh it is divided as the image is; otherwise its gradient would be gathered.
    """
    shape = like.shape if last is None else (*like.shape[:-1], last)
    sharding = jax.typeof(like).sharding
    return jnp.broadcast_to(array, shape, out_sharding=sharding if any(sharding.spec) else None)


def _is_wide(x: jax.Array) -> bool:
    return statistics_dtype(x.dtype) == x.dtype


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def weighted_sum(x: jax.Array, weights: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Σ x ⊙ w over some axes, which stay with size 1, in at least float32.

    The weights have size 1 where they are constant. Reverse mode keeps nothing but the two.
    """
    return _sum_of_products(axis, *apart(x, weights))


@weighted_sum.defjvp
def _weighted_sum_jvp(
    axis: int | tuple[int, ...],
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    return weighted_sum(*primals, axis), _change_of_sum(axis, *tangents, *primals)


@functools.partial(jax.jit, static_argnums=0)  # traced once, however many layers have it
@functools.partial(jax.checkpoint, static_argnums=0)
def _change_of_sum(
    axis: int | tuple[int, ...],
    dx: jax.Array,
    dweights: jax.Array,
    x: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    x, weights = apart(x, weights)
    of_weights = _sum_of_products(axis, x, dweights)
    # Apart, so that their cotangent is not spread over an image for both.
    return of_weights + apart(_sum_of_products(axis, dx, weights))[0]


def _sum_of_products(axis: int | tuple[int, ...], x: jax.Array, weights: jax.Array) -> jax.Array:
    dtype = statistics_dtype(x.dtype)
    wide = spread(weights.astype(dtype), x)
    return jnp.sum(x.astype(dtype) * wide, axis=axis, keepdims=True)


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
    return functools.reduce(lambda a, b: (a if _is_wide(a) else apart(a)[0]) + b, parts)


@elementwise
def apply_gate(x: jax.Array, *gates: jax.Array) -> jax.Array:
    """x ⊙ g₁ ⊙ g₂ ..."""
    return functools.reduce(jnp.multiply, gates, x)


add = elementwise(lambda x, term: x + term)
apply_sum = elementwise(lambda x, *gates: x * functools.reduce(jnp.add, gates))
gate_sum = elementwise(lambda x, *gates: functools.reduce(jnp.add, gates))


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + b for each place, `b` having the last axes of y; in the dtype of y."""
    bias = expand_rank(bias, y.ndim)
    return y + bias.astype(y.dtype) if _is_wide(y) else add(y, bias)
