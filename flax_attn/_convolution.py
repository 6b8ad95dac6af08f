"""Convolutions in other forms, where XLA is slow at them or brings divided batches together.

`convolve` takes the place of `jax.lax.conv_general_dilated` in maps and in Flax's layers. On one
device it is that function, but on CPUs

- a convolution among very few channels is a sum of shifted images, a tenth of the time;
- so is a depthwise one, a tenth to a thirtieth;
- one of wider groups is several without groups: its gradient takes a tenth to a hundredth.

On several devices the last is true of all platforms: XLA (seen until jaxlib 0.12) gathers a batch
that is divided among them whole on each for a convolution of groups, but not for one without
(openxla/xla#47945).

Each form is a bilinear function with two linear tangents, whose transposes are as fast.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._checks import statistics_dtype
from flax_attn._devices import devices_dependent
from flax_attn._jax import vary_together

FEW = 4  # products of an input and an output channel
TAPS = 64  # of a depthwise kernel: each is a line of the program
BLOCK = 32  # channels up to which groups are cheaper joined

Bilinear = Callable[[jax.Array, jax.Array], jax.Array]


class Form(NamedTuple):
    """A convolution x ∗ k, ẋ ∗ k as a function of ẋ, and x ∗ k̇ as a function of k̇.

    It is for CPUs; if `keeps_division`, for programs of several devices on all platforms.
    """

    value: Bilinear
    by_image: Bilinear
    by_kernel: Bilinear
    keeps_division: bool = False

    def change(self, dlhs: jax.Array, drhs: jax.Array, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """What small changes of image and kernel do."""
        return self.by_image(dlhs, rhs) + self.by_kernel(lhs, drhs)

    def instead_of(
        self, plain: Callable[..., jax.Array], own: Callable[..., jax.Array]
    ) -> Callable[..., jax.Array]:
        """The plain function of some arrays, or the form's own where it is for."""
        elsewhere = plain
        if self.keeps_division:
            elsewhere = functools.partial(devices_dependent, one=plain, several=own)
        return functools.partial(lax.platform_dependent, cpu=own, default=elsewhere)


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
    form = call.form(lhs, rhs)
    return form.instead_of(call.plain, form.value)(lhs, rhs)


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
    form, plain = call.form(lhs, rhs), Form(call.plain, call.plain, call.plain)
    return form.instead_of(plain.change, form.change)(dlhs, drhs, lhs, rhs)


def _form(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    settings: Mapping[str, Any],
) -> Form | None:
    """The form, if there is one; None leaves it to lax."""
    given = {name: value for name, value in settings.items() if value is not None}
    groups = given.get("feature_group_count", 1)
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, given.pop("dimension_numbers", None))
    _, features, *space = layout.lhs_spec
    out, narrow = (rhs.shape[axis] for axis in layout.rhs_spec[:2])
    if lhs.dtype != rhs.dtype or given.pop("batch_group_count", 1) != 1:
        return None
    split = {axis for axis, by in enumerate(jax.typeof(lhs).sharding.spec) if by}
    if split & set(space):
        return None  # an explicit mesh splits height or width, which no shift crosses
    if groups > 1 and (narrow > 1 or out > groups):
        if features in split:
            return None  # nor does a slice of channels
        apart = functools.partial(
            _blocks_of_groups, layout, window_strides=strides, padding=padding, **settings
        )
        return Form(apart, apart, apart, keeps_division=True)
    if layout != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)):
        return None

    dilation = tuple(given.pop("rhs_dilation", (1, 1)))
    once = all(n == 1 for n in (*strides, *given.pop("lhs_dilation", ())))
    dtype = jnp.dtype(given.pop("preferred_element_type", lhs.dtype))
    for asked in ("feature_group_count", "precision"):  # float32 has any precision
        given.pop(asked, None)
    if given or not once:
        return None  # something else was asked for

    channels, (height, width) = lhs.shape[features], rhs.shape[:2]
    if isinstance(padding, str):
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, rhs.shape[:2], strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], extent, strides, padding)
    geometry = Geometry(tuple((int(a), int(b)) for a, b in padding), dilation, dtype)

    nothing_left = any(isinstance(n, int) and n < 1 for n in geometry.size(lhs, rhs))
    if height * width == 1 or nothing_left:
        return None
    if groups == 1 and channels * out <= FEW:
        plain = functools.partial(
            lax.conv_general_dilated, window_strides=strides, padding=padding, **settings
        )
        return Form(
            functools.partial(_shifts, geometry), functools.partial(_pieces, geometry), plain
        )
    if groups == channels == out and height * width <= TAPS:
        by = functools.partial
        return Form(
            by(_shifts_of_each, geometry), by(_pieces_of_each, geometry), by(_tap_by_tap, geometry)
        )
    return None


# ---- groups: blocks of some of them, each a convolution without groups


def _blocks_of_groups(
    layout: lax.ConvDimensionNumbers, image: jax.Array, kernel: jax.Array, **settings: Any
) -> jax.Array:
    """Convolutions of some channels each, by kernels that are zero between the joined groups."""
    groups = settings.pop("feature_group_count")
    narrow = kernel.shape[layout.rhs_spec[1]]
    joined = next(
        n for n in range(1, groups + 1) if groups % n == 0 and (n * narrow >= BLOCK or n == groups)
    )
    parts = (
        lax.conv_general_dilated(
            some, _without_groups(joined, layout.rhs_spec, kernels), **settings
        )
        for some, kernels in zip(
            jnp.split(image, groups // joined, axis=layout.lhs_spec[1]),
            jnp.split(kernel, groups // joined, axis=layout.rhs_spec[0]),
            strict=True,
        )
    )
    return jnp.concatenate(list(parts), axis=layout.out_spec[1])


def _without_groups(groups: int, spec: Sequence[int], kernel: jax.Array) -> jax.Array:
    """The kernel of one group that does the same: zero from a group to another."""
    out, narrow = spec[:2]
    repeated = jnp.concatenate([kernel] * groups, axis=narrow)
    place = functools.partial(lax.broadcasted_iota, jnp.int32, repeated.shape)
    of_input = place(narrow) // kernel.shape[narrow]
    of_output = place(out) // (kernel.shape[out] // groups)
    return jnp.where(of_input == of_output, repeated, 0)


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
