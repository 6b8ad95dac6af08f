"""Barriers that keep XLA for CPUs from storing what two computations share."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from flax_attn._checks import is_wide

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
    return x if is_wide(x) else apart_p.bind(x, *after, cotangents=False)[0]
