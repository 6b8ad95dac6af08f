"""A batch that is divided under `jit` stays divided, at sizes and widths of real networks.

Seen in compiled programs: a mechanism needs nothing from other devices, and its gradient only sums
those of the weights. Small images run through other forms; that is why these are large.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import linen, maps
from flax_attn.vision._pooling import spatial_mean
from tests.compiled import every_collective
from tests.mechanisms import facts, mechanisms, module_class
from tests.runs import long
from tests.tolerances import assert_close

SHAPE = (8, 56, 56, 256)
FEWER_TOKENS = (8, 14, 14, 256)
OPTIONS = {  # as real networks have them
    "efficient_multi_scale_attention": {},
    "grid_attention": {"grid_size": 7, "num_heads": 8},
    "halo_attention": {"block_size": 8, "num_heads": 4},
    "shuffle_attention": {},
    "spatial_group_enhance": {},
    "window_attention": {"window_size": 7, "shift_size": 3, "num_heads": 8},
}
OF_ALL_TOKENS = (
    "attention_pool",
    "bottleneck_attention",
    "double_attention",
    "lambda_layer",
    "non_local",
    "position_attention",
)
# The default suite takes one of each kind of operation: convolutions of groups, few channels and
# depthwise ones, means, windows, products of all places, gates.
QUICK = {
    AxisType.Auto: (
        "attention_pool",
        "halo_attention",
        "large_kernel_attention",
        "selective_kernel",
        "window_attention",
    ),
    AxisType.Explicit: ("attention_pool", "large_kernel_attention"),
}


def mesh(kind):
    return jax.make_mesh((8,), ("batch",), axis_types=(kind,))


def on(mesh, array, *spec):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, P(*spec)))


def assert_stays_divided(function, variables, *images):
    """No collective forward; backward, sums of what is no larger than the largest weight."""
    images_back = lambda v, *xs: jax.vjp(function, v, *xs)[1](function(v, *xs))
    forward = jax.jit(function).lower(variables, *images).compile()
    assert every_collective(forward) == []
    assert jax.tree.leaves(forward.output_shardings)[0].spec[0] == "batch"
    largest = max((math.prod(v.shape) for v in jax.tree.leaves(variables)), default=1)
    for name, size in every_collective(jax.jit(images_back).lower(variables, *images).compile()):
        assert name == "all-reduce"
        assert size <= max(largest, images[0].shape[-1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if name in quick else long, id=f"{name}-{kind}")
        for kind, quick in QUICK.items()
        for name in mechanisms()
    ],
)
def test_a_mechanism_keeps_the_batch_divided(name, kind):
    cls = module_class(linen, name)
    options = OPTIONS.get(name, facts(name).module)
    if hasattr(cls, "use_running_average"):
        options = {**options, "use_running_average": True}
    module = cls(**options)
    x = jax.ShapeDtypeStruct(FEWER_TOKENS if name in OF_ALL_TOKENS else SHAPE, jnp.float32)
    others = jax.eval_shape(facts(name).others, x)
    variables = flax_linen.unbox(jax.eval_shape(module.init, jax.random.key(0), x, *others))
    devices = mesh(kind)
    variables = jax.tree.map(lambda v: on(devices, v), variables)
    images = [on(devices, a, "batch") for a in (x, *others)]
    with jax.set_mesh(devices):
        assert_stays_divided(module.apply, variables, *images)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    ("shape", "size", "groups"),
    [
        (SHAPE, (3, 3, 8, 256), 32),
        (FEWER_TOKENS, (3, 3, 64, 512), 4),
        (FEWER_TOKENS, (1, 1, 8, 256), 32),
        ((8, 56, 256), (7, 8, 256), 32),
        pytest.param((8, 14, 14, 1024), (3, 3, 32, 1024), 32, marks=long),
    ],
    ids=str,
)
def test_a_convolution_of_groups_keeps_the_batch_divided(shape, size, groups, kind):
    conv = maps.conv if len(size) == 4 else maps.conv1d
    apply = lambda kernel, x: conv(kernel, groups=groups)(x)
    devices = mesh(kind)
    kernel = on(devices, jax.ShapeDtypeStruct(size, jnp.float32))
    x = on(devices, jax.ShapeDtypeStruct(shape, jnp.float32), "batch")
    with jax.set_mesh(devices):
        if kind == AxisType.Auto:
            assert_stays_divided(apply, kernel, x)
        else:  # there JAX has no gradient of a convolution's kernel
            assert every_collective(jax.jit(apply).lower(kernel, x).compile()) == []


def test_a_convolution_of_groups_has_the_numbers_of_one_device():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 9, 7, 96)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 8, 96)) / 9, jnp.float32)

    @jax.jit
    def run(kernel, x):
        y, pull_back = jax.vjp(lambda k, x: maps.conv(k, groups=12, strides=2)(x), kernel, x)
        return y, *pull_back(jnp.sin(y))

    split = jax.device_put(x, NamedSharding(mesh(AxisType.Auto), P("batch")))
    for actual, expected in zip(run(kernel, split), run(kernel, x), strict=True):
        assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize(
    "spec",
    [("batch",), (None, "batch"), (None, None, "batch"), (None, None, None, "batch")],
    ids=str,
)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_the_mean_of_an_image_gathers_no_part_of_it(spec, kind):
    shape = (8, 32, 32, 256)
    devices = mesh(kind)
    x = on(devices, jax.ShapeDtypeStruct(shape, jnp.float32), *spec)
    with jax.set_mesh(devices):
        program = jax.jit(spatial_mean).lower(x).compile()
    for name, size in every_collective(program):  # of sums over parts of height and width
        assert name == "all-reduce"
        assert size == 8 * 256
