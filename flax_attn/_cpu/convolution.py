"""`jax.lax.conv_general_dilated`, with rewrites of convolutions that XLA for CPUs is slow at.

A rewrite is an object (`rewrites.Rewrite`) that its file makes if it serves the convolution. All
other convolutions are left to XLA.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from flax_attn._cpu.depthwise import rewrite_depthwise
from flax_attn._cpu.few_channels import rewrite_few_channels
from flax_attn._cpu.grouped_convolution import rewrite_groups
from flax_attn._cpu.rewrites import Convolution, Rewrite, traced_once
from flax_attn._cpu.switch import is_enabled

REWRITES = (rewrite_groups, rewrite_few_channels, rewrite_depthwise)


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **others: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, in the form of a rewrite where there is one."""
    convolution = Convolution(
        tuple(window_strides),
        padding if isinstance(padding, str) else tuple((a, b) for a, b in padding),
        None if lhs_dilation is None else tuple(lhs_dilation),
        None if rhs_dilation is None else tuple(rhs_dilation),
        tuple(dimension_numbers) if isinstance(dimension_numbers, list) else dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        tuple(others.items()),
    )
    rewrite = find_rewrite(convolution, lhs, rhs) if is_enabled() else None
    return convolution.plain(lhs, rhs) if rewrite is None else _convolve(rewrite, lhs, rhs)


def find_rewrite(convolution: Convolution, image: jax.Array, kernel: jax.Array) -> Rewrite | None:
    """The rewrite of a convolution, if there is one."""
    asked = any(value is not None for _, value in convolution.others)
    if asked or image.dtype != kernel.dtype or convolution.batch_group_count != 1:
        return None
    found = (rewrite(convolution, image, kernel) for rewrite in REWRITES)
    return next((rewrite for rewrite in found if rewrite is not None), None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@traced_once
def _convolve(rewrite: Rewrite, image: jax.Array, kernel: jax.Array) -> jax.Array:
    return rewrite.choose(rewrite.convolution.plain, rewrite.value)(image, kernel)


@_convolve.defjvp
def _convolve_jvp(
    rewrite: Rewrite, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _convolve(rewrite, *primals), _tangent(rewrite, *tangents, *primals)


@traced_once
@functools.partial(jax.checkpoint, static_argnums=0)  # keeps image and kernel only
def _tangent(
    rewrite: Rewrite,
    dimage: jax.Array,
    dkernel: jax.Array,
    image: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    plain = rewrite.convolution.plain

    def as_jax(dx: jax.Array, dk: jax.Array, x: jax.Array, k: jax.Array) -> jax.Array:
        return plain(dx, k) + plain(x, dk)

    def rewritten(dx: jax.Array, dk: jax.Array, x: jax.Array, k: jax.Array) -> jax.Array:
        return rewrite.by_image(dx, k) + rewrite.by_kernel(x, dk)

    return rewrite.choose(as_jax, rewritten)(dimage, dkernel, image, kernel)
