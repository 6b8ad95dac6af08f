"""The form for several devices is chosen where XLA divides a program, with all its derivatives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn._devices import devices_dependent

X, Y = np.arange(16.0).reshape(8, 2), 1 + np.arange(2.0)


def product(x, y):
    """x · y on one device, −x · y on several: wrong, so that a test sees which it is."""
    own = lambda x, y: x * jnp.broadcast_to(y, x.shape)
    return devices_dependent(x, y, one=own, several=lambda x, y: -own(x, y))


def mesh(kind=AxisType.Auto, shape=(8,), names=("devices",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def linear(x, y):
    """The same inside what is linear in x, so that it is transposed."""

    @jax.custom_jvp
    def f(x):
        return x @ y

    f.defjvp(lambda primals, tangents: (f(*primals), jnp.sum(product(tangents[0], y), -1)))
    return f(x)


TRANSFORMED = {  # a function, and what it is on one device
    "value": (product, X * Y),
    "mapped": (jax.vmap(product, (0, None)), X * Y),
    "forward mode": (lambda x, y: jax.jvp(lambda x: product(x, y), (x,), (x,))[1], X * Y),
    "transposed": (
        lambda x, y: jax.grad(lambda x: jnp.sum(linear(x, y) ** 2))(x),
        2 * (X @ Y)[:, None] * Y,
    ),
    "mapped and transposed": (
        lambda x, y: jax.vmap(jax.grad(lambda x: jnp.sum(linear(x, y) ** 2)))(x),
        2 * (X @ Y)[:, None] * Y,
    ),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_the_form_is_that_of_the_devices_it_is_compiled_for(name):
    f, expected = TRANSFORMED[name]
    x, y = jnp.asarray(X), jnp.asarray(Y)
    chex.assert_trees_all_equal(jax.jit(f)(x, y), expected)
    split = jax.device_put(x, NamedSharding(mesh(), P("devices")))
    chex.assert_trees_all_equal(jax.jit(f)(split, y), -expected)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_device_of_a_shard_map_has_a_program_of_its_own(name):
    f, expected = TRANSFORMED[name]
    run = jax.shard_map(
        f, mesh=mesh(), in_specs=(P("devices"), P()), out_specs=P("devices"), check_vma=True
    )
    chex.assert_trees_all_equal(jax.jit(run)(jnp.asarray(X), jnp.asarray(Y)), expected)


def test_over_some_axes_of_a_mesh_xla_still_divides_by_the_others():
    two = mesh(shape=(4, 2), names=("manual", "auto"))
    run = functools.partial(
        jax.shard_map, in_specs=(P("manual"), P()), out_specs=P("manual"), axis_names={"manual"}
    )
    found = jax.jit(run(product, mesh=two))(jnp.asarray(X), jnp.asarray(Y))
    chex.assert_trees_all_equal(found, -X * Y)


def test_an_explicit_mesh_keeps_its_shardings():
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        x = jax.device_put(jnp.asarray(X), NamedSharding(explicit, P("devices")))
        found = jax.jit(product)(x, jnp.asarray(Y))
        change = jax.jit(TRANSFORMED["transposed"][0])(x, jnp.asarray(Y))
    assert found.sharding.spec[0] == change.sharding.spec[0] == "devices"
    chex.assert_trees_all_equal(found, -X * Y)


def test_without_compilation_it_is_the_form_for_one_device():
    with jax.disable_jit():
        chex.assert_trees_all_equal(product(jnp.asarray(X), jnp.asarray(Y)), X * Y)
