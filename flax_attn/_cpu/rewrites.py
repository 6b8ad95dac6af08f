"""What a convolution is, and what a rewrite of one is."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._jax import vary_together

Function = Callable[..., jax.Array]
NHWC = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))

traced_once = functools.partial(jax.jit, static_argnums=0)  # however many layers use it


class Convolution(NamedTuple):
    """The settings of a convolution: the arguments of `jax.lax.conv_general_dilated`."""

    window_strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...] | None
    rhs_dilation: tuple[int, ...] | None
    dimension_numbers: Any
    feature_group_count: int
    batch_group_count: int
    precision: Any
    preferred_element_type: Any
    others: tuple[tuple[str, Any], ...]  # which only some versions of JAX have

    def plain(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        """The plain formula of every rewrite."""
        settings = self._asdict()
        others = dict(settings.pop("others"))
        return lax.conv_general_dilated(image, kernel, **settings, **others)

    def layout(self, image: jax.Array, kernel: jax.Array) -> lax.ConvDimensionNumbers:
        """The axes of batch, channels and space in image, kernel and result."""
        return lax.conv_dimension_numbers(image.shape, kernel.shape, self.dimension_numbers)


class Rewrite(Protocol):
    """Another form of a convolution. It is hashable and equal by value.

    The last two methods compute the same as `value`. Their transposes are the gradients, so that
    each may be written in a form whose transpose is fast.
    """

    @property
    def convolution(self) -> Convolution:
        """The convolution that is rewritten."""

    def choose(self, plain: Function, rewritten: Function) -> Function:
        """One of two equal functions, by the platform and the devices that are compiled for."""

    def value(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        """The result."""

    def by_image(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        """The result as a linear function of the image."""

    def by_kernel(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        """The result as a linear function of the kernel."""


def choose_on_cpus(plain: Function, rewritten: Function) -> Function:
    """`rewritten` if a program is compiled for CPUs, otherwise `plain`."""
    return functools.partial(lax.platform_dependent, cpu=rewritten, default=plain)


class Shifts(NamedTuple):
    """A convolution of stride 1 on `[B, H, W, C]` as a sum of shifted images.

    y[h, w] = Σ_ij k[i, j] x[h + d_h i − p_h, w + d_w j − p_w]

    Attributes:
      padding: Zeros (before, after) height and width.
      dilation: d, the distance between taps.
      dtype: Of the result.
    """

    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    dtype: jnp.dtype

    def reach(self, kernel: jax.Array) -> list[int]:
        """The distance from the first tap to the last, in rows and in columns."""
        return [d * (k - 1) for d, k in zip(self.dilation, kernel.shape[:2], strict=True)]

    def padded(self, image: jax.Array) -> jax.Array:
        """The image with its zeros."""
        return jnp.pad(image, ((0, 0), *self.padding, (0, 0)))

    def size(self, image: jax.Array, kernel: jax.Array) -> list[int]:
        """Height and width of the result."""
        spaces = zip(image.shape[1:3], self.padding, self.reach(kernel), strict=True)
        return [n + before + after - reach for n, (before, after), reach in spaces]

    def crop(self, full: jax.Array, kernel: jax.Array) -> jax.Array:
        """The result out of the full convolution, in which each place sees any of the image."""
        edges = [
            (before - reach, after - reach, 0)
            for (before, after), reach in zip(self.padding, self.reach(kernel), strict=True)
        ]
        result = lax.pad(full, jnp.zeros((), full.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
        return result.astype(self.dtype)


def as_shifts(convolution: Convolution, image: jax.Array, kernel: jax.Array) -> Shifts | None:
    """A convolution as a sum of shifted images, if it is one of more than one tap."""
    if convolution.layout(image, kernel) != NHWC or split_axes(image) & {1, 2}:
        return None
    if any(n != 1 for n in (*convolution.window_strides, *(convolution.lhs_dilation or ()))):
        return None
    sizes, dilation = kernel.shape[:2], convolution.rhs_dilation or (1, 1)
    if isinstance(convolution.padding, str):
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, sizes, strict=True)]
        pads = lax.padtype_to_pads(image.shape[1:3], extent, (1, 1), convolution.padding)
    else:
        pads = list(convolution.padding)
    dtype = convolution.preferred_element_type
    shifts = Shifts(
        tuple((int(before), int(after)) for before, after in pads),
        dilation,
        jnp.dtype(image.dtype if dtype is None else dtype),
    )
    nothing_left = any(isinstance(n, int) and n < 1 for n in shifts.size(image, kernel))
    return None if sizes == (1, 1) or nothing_left else shifts


def split_axes(image: jax.Array) -> set[int]:
    """The axes that an explicit mesh splits; shifts and slices do not cross devices."""
    return {axis for axis, by in enumerate(jax.typeof(image).sharding.spec) if by}


def as_wide(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays in at least float32."""
    return [a.astype(statistics_dtype(a.dtype)) for a in arrays]


def zeros_like_result(like: jax.Array, weights: jax.Array) -> jax.Array:
    """Zeros to start a loop with, which differ between devices as its result does."""
    return vary_together([jnp.zeros_like(like), like, weights])[0]


def add_up(terms: Iterable[jax.Array]) -> jax.Array:
    """The sum of some arrays, in their order."""
    return functools.reduce(jnp.add, terms)
