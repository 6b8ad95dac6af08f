"""Convolutions in the forms for CPUs equal those of lax, with all their derivatives."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from flax_attn._cpu.convolution import convolve, find_rewrite
from flax_attn._cpu.rewrites import Convolution
from tests.compilation import AS_USERS
from tests.runs import long, some_by_default
from tests.tolerances import GRADIENT, assert_close

LAYOUT = ("NHWC", "HWIO", "NHWC")
about_cpus = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the forms are for CPUs")
PADDINGS = some_by_default(
    [((3, 3), (3, 3)), ((0, 1), (5, 2)), ((7, 0), (0, 8)), "SAME", "VALID"],
    ((3, 3), (3, 3)),
    ((0, 1), (5, 2)),
)
FORMS = {  # an image, a kernel, settings
    "one channel of two": ((2, 9, 20, 2), (3, 7, 2, 1), {}),
    "one channel of two, dilated": ((2, 9, 20, 2), (3, 7, 2, 1), {"rhs_dilation": (2, 3)}),
    "two channels": ((2, 9, 20, 2), (4, 5, 2, 2), {}),
    "depthwise": ((2, 9, 20, 5), (3, 5, 1, 5), {"feature_group_count": 5}),
    "depthwise, dilated": (
        (2, 9, 20, 5),
        (3, 3, 1, 5),
        {"feature_group_count": 5, "rhs_dilation": (2, 3)},
    ),
    "narrow groups": ((2, 9, 8, 8), (3, 3, 2, 16), {"feature_group_count": 4}),
    "two groups": ((2, 9, 8, 12), (3, 3, 6, 24), {"feature_group_count": 2}),
    "wide groups": ((2, 9, 8, 24), (3, 3, 8, 24), {"feature_group_count": 3}),
    "blocks of groups": ((2, 9, 8, 96), (3, 3, 8, 48), {"feature_group_count": 12}),
    "two of each channel": ((2, 9, 8, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def both(strides, padding, settings):
    known = {"window_strides": strides, "padding": padding, "dimension_numbers": LAYOUT, **settings}
    return functools.partial(convolve, **known), functools.partial(
        lax.conv_general_dilated, **known
    )


def form(x, kernel, strides=(1, 1), padding="SAME", **settings):
    known = {
        "lhs_dilation": None,
        "rhs_dilation": None,
        "dimension_numbers": LAYOUT,
        "feature_group_count": 1,
        "batch_group_count": 1,
        "precision": None,
        "preferred_element_type": None,
        "others": (),
    }
    return find_rewrite(Convolution(strides, padding, **{**known, **settings}), x, kernel)


def assert_same(ours, theirs, transform):
    actual, expected = jax.jit(lambda: (transform(ours), transform(theirs)))()
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(a, e, GRADIENT["float64"])


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_the_convolution_with_its_derivatives(name, padding, x64):
    shape, size, settings = FORMS[name]
    x, kernel = draw(*shape), draw(*size)
    assert form(x, kernel, padding=padding, **settings) is not None
    ours, theirs = both((1, 1), padding, settings)

    def derivatives(f):
        y, pull_back = jax.vjp(f, x, kernel)
        tangent = jax.jvp(f, (x, kernel), (x + 1, kernel - 1))
        return f(x, kernel), pull_back(draw(*y.shape, seed=1)), tangent

    assert_same(ours, theirs, derivatives)


@long
@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_mapped_and_differentiated_twice(name, x64):
    shape, size, settings = FORMS[name]
    x, kernel = draw(2, *shape), draw(2, *size)
    ours, theirs = both((1, 1), "SAME", settings)

    def second(f):
        inner = jax.grad(lambda x, k: jnp.sum(f(x, k) ** 3), 1)
        return jax.grad(lambda x, k: jnp.sum(inner(x, k) ** 2), (0, 1))(x[0], kernel[0])

    assert_same(ours, theirs, second)
    assert_same(ours, theirs, lambda f: jax.vmap(f)(x, kernel))
    assert_same(
        ours, theirs, lambda f: jax.vmap(jax.grad(lambda x, k: f(x, k).sum(), 1))(x, kernel)
    )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_each_form_adds_up_in_float32_and_keeps_the_dtype(name, dtype):
    shape, size, settings = FORMS[name]
    x, kernel = (draw(*s).astype(jnp.bfloat16) for s in (shape, size))
    settings = {**settings, "preferred_element_type": dtype and jnp.dtype(dtype)}
    ours, theirs = both((1, 1), "SAME", settings)
    y, expected = jax.jit(lambda x, kernel: (ours(x, kernel), theirs(x, kernel)))(x, kernel)
    chex.assert_type(y, expected.dtype)
    assert_close(y, expected, GRADIENT["bfloat16"])


@pytest.mark.parametrize("name", FORMS)
def test_each_form_keeps_nothing_but_image_and_kernel(name, x64):
    """Not the image shifted for each tap, nor the number of the platform.

    XLA for CPUs is slow at a convolution in a branch that this number chooses.
    """
    shape, size, settings = FORMS[name]
    x, kernel = draw(*shape), draw(*size)
    ours, _ = both((1, 1), "SAME", settings)
    _, pull_back = jax.vjp(jax.jit(ours), x, kernel)
    kept = [a.shape for a in jax.tree.leaves(pull_back)]
    assert sorted(kept) == sorted([shape, size])


@about_cpus
@pytest.mark.parametrize(
    ("shape", "size", "groups", "images"),
    [
        ((2, 56, 56, 16), (7, 7, 1, 16), 16, 3),  # depthwise
        ((2, 56, 56, 16), (3, 3, 4, 16), 4, 3),
        ((2, 56, 56, 32), (3, 3, 8, 32), 4, 3),
    ],
)
def test_gradients_need_few_images_and_convolutions_that_xla_is_fast_at(
    shape, size, groups, images
):
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, size))
    ours, _ = both((1, 1), "SAME", {"feature_group_count": groups})

    def gradients(x, kernel, cotangent):
        return jax.vjp(ours, x, kernel)[1](cotangent)

    program = jax.jit(gradients).lower(x, kernel, x).compile(compiler_options=AS_USERS)
    assert program.memory_analysis().temp_size_in_bytes < images * 4 * np.prod(shape)
    layouts = set(re.findall(r"dim_labels=(\w+->\w+)", program.as_text()))
    assert layouts <= {"b01f_01io->b01f"}  # others are loops, a hundred times slower


@about_cpus
@pytest.mark.parametrize("name", FORMS)
def test_no_convolution_of_groups_is_left(name):
    shape, size, settings = FORMS[name]
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, size))
    ours, _ = both((1, 1), "SAME", settings)
    gradient = jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(ours(x, k))), 1))
    text = gradient.lower(x, kernel).compile().as_text()
    assert "feature_group_count=" not in text
    assert "batch_group_count=" not in text


@pytest.mark.parametrize(
    ("shape", "size", "strides", "settings"),
    [
        ((2, 9, 20, 1), (3, 3, 1, 16), (1, 1), {}),  # many of one channel
        ((2, 9, 8, 2), (3, 3, 2, 1), (2, 2), {}),
        ((2, 9, 8, 2), (3, 3, 2, 1), (1, 1), {"lhs_dilation": (2, 2)}),
        ((2, 9, 8, 2), (1, 1, 2, 1), (1, 1), {}),
        ((2, 9, 8, 8), (3, 3, 1, 8), (2, 2), {"feature_group_count": 8}),
        ((2, 9, 8, 8), (3, 3, 8, 8), (1, 1), {}),
        ((2, 3, 3, 2), (7, 3, 2, 1), (1, 1), {}),  # wider than the image: nothing is left
        ((2, 3, 3, 4), (3, 7, 1, 4), (1, 1), {"feature_group_count": 4}),
    ],
)
def test_other_convolutions_are_left_to_lax(shape, size, strides, settings):
    x, kernel = draw(*shape), draw(*size)
    padding = ((1, 1), (1, 1))
    assert form(x, kernel, strides, padding, **settings) is None
    ours, theirs = both(strides, padding, settings)
    chex.assert_trees_all_equal(*jax.jit(lambda: (ours(x, kernel), theirs(x, kernel)))())


def test_groups_may_have_steps(x64):
    x, kernel = draw(2, 9, 8, 8), draw(3, 3, 2, 8)
    ours, theirs = both((2, 2), ((1, 1), (1, 1)), {"feature_group_count": 4})
    cotangent = draw(2, 5, 4, 8)
    assert_same(ours, theirs, lambda f: jax.vjp(f, x, kernel)[1](cotangent))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("check_vma", some_by_default([True, False], True))
def test_each_form_runs_on_a_mesh(name, check_vma, x64):
    shape, size, settings = FORMS[name]
    x, kernel = draw(*shape), draw(*size)
    ours, theirs = both((1, 1), "SAME", settings)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradients(f, x, kernel):
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), (0, 1))(x, kernel)

    def on_a_device(x, kernel):
        of_image, of_kernel = gradients(ours, x, kernel)
        return of_image, of_kernel[None]

    parts = P("batch")
    run = jax.shard_map(
        on_a_device, mesh=mesh, in_specs=(parts, P()), out_specs=parts, check_vma=check_vma
    )
    of_image, of_kernel = jax.jit(run)(x, kernel)
    of_kernel = of_kernel[0] if check_vma else of_kernel.sum(0)
    wanted = jax.jit(functools.partial(gradients, theirs))(x, kernel)
    for actual, expected in zip((of_image, of_kernel), wanted, strict=True):
        assert_close(actual, expected, GRADIENT["float64"])


@long
@pytest.mark.parametrize("axis", ["batch", "height"])
@pytest.mark.parametrize("name", FORMS)
def test_each_form_runs_on_an_explicit_mesh(name, axis, x64):
    shape, size, settings = FORMS[name]
    x, kernel = draw(shape[0], 8, *shape[2:]), draw(*size)
    ours, theirs = both((1, 1), "SAME", settings)
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Explicit,))
    spec = P("devices") if axis == "batch" else P(None, "devices")
    # By the image: there lax itself asks for a sharding of the kernel's gradient.
    gradient = lambda f: jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(f(x, k)))))
    expected = gradient(theirs)(x, kernel)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        found = gradient(ours)(split, kernel)
    for a, e in zip(found, expected, strict=True):
        assert_close(np.asarray(a), e, GRADIENT["float64"])


def test_flax_layers_take_it():
    x = draw(2, 6, 9, 4).astype(jnp.float32)
    settings = {"feature_group_count": 4, "kernel_dilation": 2, "padding": 2}
    conv = functools.partial(nnx.Conv, 4, 4, (3, 3), **settings)
    plain = conv(rngs=nnx.Rngs(0))
    ours = conv(conv_general_dilated=convolve, rngs=nnx.Rngs(0))
    assert_close(ours(x), plain(x), GRADIENT["float32"])
