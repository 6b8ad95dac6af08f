"""The mean over an image, which XLA for CPUs takes by rows of several places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn._cpu import row_sums
from flax_attn.vision._pooling import spatial_mean
from tests.tolerances import FORWARD, GRADIENT, assert_close


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(row_sums, "MIN_SIZE", 1)


def image(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(x):
    return jnp.mean(x, (-3, -2))


def loss(mean, x):
    return jnp.sum(jnp.sin(4 * mean(x)))


@pytest.mark.parametrize(
    "shape",
    [(8, 64, 64, 64), (2, 7, 300, 512), (210, 250, 40), (1, 3, 1000, 700), (2, 2, 32, 32, 512)],
    ids=str,
)
def test_the_mean_of_a_large_image_is_that_of_numpy(shape):
    x = image(shape) + 1
    assert row_sums.places_per_row(x) > 1
    assert_close(spatial_mean(jnp.asarray(x)), np.mean(x, (-3, -2), np.float64), 1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 64, 64, 64), "float32"),
        ((8, 64, 64, 64), "bfloat16"),
        ((2, 32, 32, 1024), "float32"),
        ((1, 1, 1009, 2100), "float32"),
    ],
    ids=str,
)
def test_small_ones_and_those_of_long_rows_are_left_to_xla(shape, dtype):
    assert row_sums.places_per_row(jax.ShapeDtypeStruct(shape, dtype)) == 1


@pytest.mark.usefixtures("small_is_large")
def test_its_derivatives_are_those_of_the_mean():
    x, v = (jnp.asarray(image((2, 4, 8, 128), seed)) for seed in (0, 1))
    ours, theirs = (functools.partial(loss, mean) for mean in (spatial_mean, plain))
    assert_close(jax.grad(ours)(x), jax.grad(theirs)(x), GRADIENT["float32"])
    along = lambda f: jax.jvp(jax.grad(f), (x,), (v,))[1]
    assert_close(along(ours), along(theirs), GRADIENT["float32"])
    each = jax.jit(jax.vmap(jax.value_and_grad(ours)))(x)
    expected = jax.vmap(jax.value_and_grad(theirs))(x)
    jax.tree.map(functools.partial(assert_close, relative=GRADIENT["float32"]), each, expected)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("check_vma", [True, False])
def test_it_works_on_parts_of_a_batch(check_vma):
    x = jnp.asarray(image((4, 4, 8, 128)))
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
    split = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("devices"), out_specs=P("devices"), check_vma=check_vma
    )
    found = jax.jit(jax.value_and_grad(functools.partial(loss, split(spatial_mean))))(x)
    expected = jax.value_and_grad(functools.partial(loss, plain))(x)
    jax.tree.map(functools.partial(assert_close, relative=GRADIENT["float32"]), found, expected)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("spec", [P("devices"), P(None, "devices"), P(None, None, None, "devices")])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_it_works_on_meshes(kind, spec):
    x = jnp.asarray(image((4, 4, 8, 128)))
    expected = jax.value_and_grad(functools.partial(loss, plain))(x)
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, spec))
        found = jax.jit(jax.value_and_grad(functools.partial(loss, spatial_mean)))(split)
    compare = lambda a, e: assert_close(np.asarray(a), e, GRADIENT["float32"])
    jax.tree.map(compare, found, expected)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_have_the_mean_as_it_is(platform):
    x = jnp.ones((2, 4, 8, 128))
    lowered = jax.jit(spatial_mean).trace(x).lower(lowering_platforms=(platform,))
    assert "reshape" not in lowered.as_text()
    assert "reshape" in jax.jit(spatial_mean).lower(x).as_text()


def test_a_large_image_may_have_a_symbolic_size():
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 512, 512, 64), jnp.float32)
    exported = jax.export.export(jax.jit(spatial_mean))(x)
    assert exported.call(jnp.ones((1, 512, 512, 64))).shape == (1, 64)
    assert FORWARD["float32"] > np.max(abs(exported.call(jnp.ones((1, 512, 512, 64))) - 1))
