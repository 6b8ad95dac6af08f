"""Convolutions that XLA for CPUs is slow at, there in forms that it is fast at.

`convolve` takes the place of `jax.lax.conv_general_dilated` in maps and in Flax's layers. On other
platforms it is that function. On CPUs

- a convolution among very few channels is a sum of shifted images, a tenth of the time;
- so is a depthwise one, a tenth to a thirtieth;
- one of many groups has the gradient of its kernel, and one of few or narrow groups its value too,
  by a kernel without groups that is zero between them: down to a hundredth.

Each form is a bilinear function with two linear tangents, whose transposes are as fast.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._jax import vary_together

FEW = 4  # products of an input and an output channel
TAPS = 64  # of a depthwise kernel: each is a line of the program
NARROW, MANY = 4, 64  # channels of a group, and groups, up to which they are cheaper joined

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]


class Form(NamedTuple):
    """A convolution x ∗ k, ẋ ∗ k as a function of ẋ, and x ∗ k̇ as a function of k̇."""

    value: Bilinear
    by_image: Bilinear
    by_kernel: Bilinear


class Geometry(NamedTuple):
    """What a convolution with steps of 1 is, besides its image and kernel."""

    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    dtype: jnp.dtype  # of the result

    def reach(self, kernel: jax.Array) -> list[int]:
        """How far the last tap is from the first, in rows and in columns."""
        return [d * (k - 1) for d, k in zip(self.dilation, kernel.shape[:2], strict=True)]

    def padded(self, image: jax.Array) -> jax.Array:
        return jnp.pad(image, ((0, 0), *self.padding, (0, 0)))

    def size(self, image: jax.Array, kernel: jax.Array) -> list[int]:
        """Height and width of the result."""
        spaces = zip(image.shape[1:3], self.padding, self.reach(kernel), strict=True)
        return [n + before + after - reach for n, (before, after), reach in spaces]

    def cut(self, whole: jax.Array, kernel: jax.Array) -> jax.Array:
        """The result out of one that sees every part of the image, `[B, H, W, O]`."""
        edges = [
            (before - reach, after - reach, 0)
            for (before, after), reach in zip(self.padding, self.reach(kernel), strict=True)
        ]
        result = lax.pad(whole, jnp.zeros((), whole.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
        return result.astype(self.dtype)


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, in a faster form on CPUs where there is one."""
    settings = {n: tuple(x) if isinstance(x, list) else x for n, x in settings.items()}
    strides = tuple(window_strides)
    padding = padding if isinstance(padding, str) else tuple((a, b) for a, b in padding)
    if _form(lhs, rhs, strides, padding, settings) is None:
        return lax.conv_general_dilated(lhs, rhs, strides, padding, **settings)
    return _convolve(Call(strides, padding, tuple(settings.items())), lhs, rhs)


class Call(NamedTuple):
    """The arguments of a convolution that has a form of its own, besides its arrays."""

    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    settings: tuple[tuple[str, Any], ...]

    def form(self, lhs: jax.Array, rhs: jax.Array) -> Form:
        form = _form(lhs, rhs, self.strides, self.padding, dict(self.settings))
        assert form is not None
        return form

    def plain(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, self.strides, self.padding, **dict(self.settings))


once_for_a_size = functools.partial(jax.jit, static_argnums=0)  # however many layers have it


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@once_for_a_size
def _convolve(call: Call, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    value = call.form(lhs, rhs).value
    return lax.platform_dependent(lhs, rhs, cpu=value, default=call.plain)


@_convolve.defjvp
def _convolve_jvp(
    call: Call, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _convolve(call, *primals), _change(call, *tangents, *primals)


@once_for_a_size
@functools.partial(jax.checkpoint, static_argnums=0)  # keeps nothing but image and kernel
def _change(
    call: Call, dlhs: jax.Array, drhs: jax.Array, lhs: jax.Array, rhs: jax.Array
) -> jax.Array:
    """What small changes of image and kernel do to a convolution."""
    form = call.form(lhs, rhs)

    def fast(dlhs: jax.Array, drhs: jax.Array, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return form.by_image(dlhs, rhs) + form.by_kernel(lhs, drhs)

    def plain(dlhs: jax.Array, drhs: jax.Array, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return call.plain(dlhs, rhs) + call.plain(lhs, drhs)

    return lax.platform_dependent(dlhs, drhs, lhs, rhs, cpu=fast, default=plain)


def _form(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    settings: Mapping[str, Any],
) -> Form | None:
    """The form for `[B, H, W, C]` and `[kh, kw, C / groups, O]`; None leaves it to lax."""
    given = {name: value for name, value in settings.items() if value is not None}
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, given.pop("dimension_numbers", None))
    if layout != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or lhs.dtype != rhs.dtype:
        return None
    if any(jax.typeof(lhs).sharding.spec[1:3]):
        return None  # an explicit mesh splits height or width, which no shift crosses
    groups = given.pop("feature_group_count", 1)
    dilation = tuple(given.pop("rhs_dilation", (1, 1)))
    once = all(n == 1 for n in (*strides, *given.pop("lhs_dilation", ())))
    dtype = jnp.dtype(given.pop("preferred_element_type", lhs.dtype))
    given.pop("precision", None)  # float32 has any
    if given.pop("batch_group_count", 1) != 1 or given:
        return None  # something else was asked for

    channels, (height, width, narrow, out) = lhs.shape[3], rhs.shape
    if isinstance(padding, str):
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, rhs.shape[:2], strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], extent, strides, padding)
    geometry = Geometry(tuple((int(a), int(b)) for a, b in padding), dilation, dtype)

    joined = functools.partial(
        _without_groups, groups, window_strides=strides, padding=padding, **settings
    )
    nothing_left = any(isinstance(n, int) and n < 1 for n in geometry.size(lhs, rhs))
    if height * width == 1 or nothing_left:
        return None
    if once and groups == 1 and channels * out <= FEW:
        return Form(
            functools.partial(_shifts, geometry), functools.partial(_pieces, geometry), joined
        )
    if once and groups == channels == out and height * width <= TAPS:
        each = (_shifts_of_each, _pieces_of_each, _tap_by_tap)
        return Form(*(functools.partial(form, geometry) for form in each))
    if groups > 1 and narrow > 1:
        if groups == 2 or (narrow <= NARROW and groups <= MANY):
            return Form(joined, joined, joined)
        grouped = functools.partial(
            lax.conv_general_dilated, window_strides=strides, padding=padding, **settings
        )
        return Form(grouped, grouped, joined)
    return None


def _without_groups(groups: int, image: jax.Array, kernel: jax.Array, **settings: Any) -> jax.Array:
    """The convolution by a kernel that is zero between different groups."""
    if groups > 1:
        *size, narrow, out = kernel.shape
        own = jnp.arange(groups)[:, None] == jnp.arange(out)[None] // (out // groups)
        kernel = jnp.where(own[:, None], kernel[:, :, None], 0)
        kernel = kernel.reshape(*size, groups * narrow, out)
    return lax.conv_general_dilated(image, kernel, **{**settings, "feature_group_count": 1})


def _wide(*arrays: jax.Array) -> list[jax.Array]:
    return [a.astype(statistics_dtype(a.dtype)) for a in arrays]


def _nothing(like: jax.Array, weights: jax.Array) -> jax.Array:
    """Zeros to begin a loop with, on whose devices they lie and differ as its result does."""
    return vary_together([jnp.zeros_like(like), like, weights])[0]


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


# ---- very few channels: one row of the kernel after another


@once_for_a_size
def _shifts(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_ijc k_ijco ⊙ x_c shifted by i and j."""
    height, width = geometry.size(image, kernel)
    rows, columns, channels, out = kernel.shape
    wide, weights = _wide(image, kernel)
    planes = jnp.moveaxis(geometry.padded(wide), -1, 0)
    down, right = geometry.dilation

    def of_row(i: jax.Array | int) -> jax.Array:
        seen = lax.dynamic_slice_in_dim(planes, i * down, height, axis=2)
        row = lax.dynamic_index_in_dim(weights, i, keepdims=False)
        shifted = [
            (j, c, lax.slice_in_dim(plane, j * right, j * right + width, axis=2))
            for c, plane in enumerate(_unstack(seen, channels))
            for j in range(columns)
        ]
        return jnp.stack(
            [_sum(_entry(row, j, c, o) * x for j, c, x in shifted) for o in range(out)]
        )

    nothing = _nothing(jnp.stack([planes[0, :, :height, :width]] * out), weights)
    total = lax.fori_loop(0, rows, lambda i, total: total + of_row(i), nothing)
    return jnp.moveaxis(total, 0, -1).astype(geometry.dtype)


@once_for_a_size
def _pieces(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a sum of padded images, of which JAX's transpose is a sum of shifted ones."""
    rows, columns, channels, out = kernel.shape
    wide, weights = _wide(image, kernel)
    planes = _unstack(jnp.moveaxis(wide, -1, 0), channels)
    (down, right), (below, beside) = geometry.dilation, geometry.reach(kernel)
    room = jnp.pad(planes[0], ((0, 0), (0, below), (0, beside)))
    nothing = _nothing(jnp.stack([room] * out), weights)
    zero, whole = jnp.zeros((), wide.dtype), (0, 0, 0)

    def piece(weight: jax.Array, plane: jax.Array, j: int) -> jax.Array:
        left = right * j
        return lax.pad(weight * plane, zero, (whole, whole, (beside - left, left, 0)))

    @jax.checkpoint
    def add_row(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        row = lax.dynamic_index_in_dim(weights, i, keepdims=False)
        pieces = [
            _sum(
                piece(_entry(row, j, c, o), plane, j)
                for c, plane in enumerate(planes)
                for j in range(columns)
            )
            for o in range(out)
        ]
        start = below - down * i
        return (
            total + lax.dynamic_update_slice_in_dim(nothing, jnp.stack(pieces), start, axis=2),
            None,
        )

    total, _ = lax.scan(add_row, nothing, jnp.arange(rows))
    return geometry.cut(jnp.moveaxis(total, 0, -1), kernel)


def _unstack(stacked: jax.Array, count: int) -> list[jax.Array]:
    return [lax.index_in_dim(stacked, i, keepdims=False) for i in range(count)]


def _entry(weights: jax.Array, *place: int) -> jax.Array:
    """One weight for a plane (as `weights[place]` is, which JAX traces slowly)."""
    return lax.reshape(lax.slice(weights, place, [i + 1 for i in place]), (1, 1, 1))


# ---- depthwise: one line of the program for each tap of the kernel


def _taps(geometry: Geometry, kernel: jax.Array) -> Iterator[tuple[jax.Array, int, int]]:
    """The weights `[1, 1, 1, C]` of each tap, and where it reads."""
    rows, columns, _, channels = kernel.shape
    down, right = geometry.dilation
    for i in range(rows):
        for j in range(columns):
            weight = lax.slice(kernel, (i, j, 0, 0), (i + 1, j + 1, 1, channels))
            yield weight, i * down, j * right


@once_for_a_size
def _shifts_of_each(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_ij k_ij ⊙ x shifted by i and j."""
    height, width = geometry.size(image, kernel)
    batch, _, _, channels = image.shape
    wide, weights = _wide(image, kernel)
    seen = geometry.padded(wide)
    total = _sum(
        weight * lax.slice(seen, (0, i, j, 0), (batch, i + height, j + width, channels))
        for weight, i, j in _taps(geometry, weights)
    )
    return total.astype(geometry.dtype)


@once_for_a_size
def _pieces_of_each(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a sum of padded images, of which JAX's transpose is a sum of shifted ones."""
    wide, weights = _wide(image, kernel)
    below, beside = geometry.reach(kernel)
    zero, all_of_it = jnp.zeros((), wide.dtype), (0, 0, 0)
    whole = _sum(
        lax.pad(weight * wide, zero, (all_of_it, (below - i, i, 0), (beside - j, j, 0), all_of_it))
        for weight, i, j in _taps(geometry, weights)
    )
    return geometry.cut(whole, kernel)


@once_for_a_size
def _tap_by_tap(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same in a loop, of which the transpose for the kernel sums one tap after another."""
    height, width = geometry.size(image, kernel)
    batch, _, _, channels = image.shape
    wide, weights = _wide(image, kernel)
    seen = geometry.padded(wide)
    columns, (down, right) = kernel.shape[1], geometry.dilation
    each = weights.reshape(-1, 1, 1, 1, channels)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add_tap(total: jax.Array, tap: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        n, weight = tap
        start = (0, n // columns * down, n % columns * right, 0)
        shifted = lax.dynamic_slice(seen, start, (batch, height, width, channels))
        return total + weight * shifted, None

    nothing = _nothing(lax.slice(seen, (0, 0, 0, 0), (batch, height, width, channels)), weights)
    total, _ = lax.scan(add_tap, nothing, (jnp.arange(len(each)), each))
    return total.astype(geometry.dtype)
