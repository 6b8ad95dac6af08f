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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu import depthwise, few_channels
from flax_attn._cpu.geometry import Geometry, once_for_a_size
from flax_attn._cpu.grouped_convolution import blocks_of_groups
from flax_attn._devices import devices_dependent

FEW = 4  # products of an input and an output channel
TAPS = 64  # of a depthwise kernel: each is a line of the program

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
            blocks_of_groups, layout, window_strides=strides, padding=padding, **settings
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
            functools.partial(few_channels.shifts, geometry),
            functools.partial(few_channels.pieces, geometry),
            plain,
        )
    if groups == channels == out and height * width <= TAPS:
        by = functools.partial
        return Form(
            by(depthwise.shifts, geometry),
            by(depthwise.pieces, geometry),
            by(depthwise.tap_by_tap, geometry),
        )
    return None
