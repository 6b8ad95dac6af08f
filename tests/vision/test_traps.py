"""Options that the field uses, and traps that popular code falls into."""

import functools
import math

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import linen, maps, nnx, vision
from tests.mechanisms import linen_module, maps_of, merged, random_variables
from tests.oracles import vision as oracles
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(0.3, 1.5, (2, 6, 5, 32)).astype(np.float32)
WIDE = np.asarray(X, np.float64)


def apply(module):
    """The output, and the oracle's by the module's random parameters."""
    variables = random_variables("", 32, dtype=np.float32, module=module)
    return jax.jit(module.apply)(variables, X), merged(variables)


def call(function, x, *given, **bound):
    """What a function makes of an image, in one program."""
    return jax.jit(lambda x: function(x, *given, **bound))(x)


def kernel_of(module, layer):
    """The shape of a layer's kernel."""
    variables = jax.eval_shape(module.init, jax.random.key(0), X)
    return variables["params"][layer]["kernel"].shape


def test_squeeze_excite_as_in_mobilenet_v3():
    module = linen.SqueezeExcite(hidden_features=5, use_bias=True, gate_fn=jax.nn.hard_sigmoid)
    y, p = apply(module)
    chex.assert_shape(p["reduce"]["kernel"], (32, 5))
    hidden = oracles.relu(oracles.linear(WIDE.mean((1, 2)), p["reduce"]))
    gate = np.clip(oracles.linear(hidden, p["expand"]) + 3, 0, 6) / 6
    assert_close(y, WIDE * gate[:, None, None], FORWARD["float32"])


def test_squeeze_excite_as_in_efficientnet():
    y, p = apply(linen.SqueezeExcite(use_bias=True, activation_fn=jax.nn.silu))
    hidden = oracles.linear(WIDE.mean((1, 2)), p["reduce"])
    gate = oracles.sigmoid(oracles.linear(hidden * oracles.sigmoid(hidden), p["expand"]))
    assert_close(y, WIDE * gate[:, None, None], FORWARD["float32"])


def test_cbam_as_released_has_biases_a_norm_and_the_maximum_first():
    module = linen_module("cbam", reduction=16, kernel_size=7, use_bias=True, order=("max", "mean"))
    norm = functools.partial(flax_linen.BatchNorm, use_running_average=True)
    y, p = apply(module.clone(norm=norm))
    chex.assert_shape(p["channel"]["reduce"]["bias"], (2,))
    flipped = {**p["spatial"], "conv": {"kernel": p["spatial"]["conv"]["kernel"][:, :, ::-1]}}
    expected = oracles.cbam(WIDE, {"channel": p["channel"], "spatial": flipped})
    assert_close(y, expected, FORWARD["float32"])
    assert not np.allclose(y, oracles.cbam(WIDE, p), rtol=1e-3)


def test_bam_as_released_multiplies():
    y, p = apply(linen_module("bam", combine="multiply"))
    assert not np.allclose(y, oracles.bam(WIDE, p), rtol=1e-3)


def test_explicit_kernels_and_widths():
    assert kernel_of(linen.ECA(kernel_size=7), "conv") == (7, 1, 1)
    name = "coordinate_attention"
    assert kernel_of(linen_module(name, hidden_features=3), "reduce") == (32, 3)
    assert kernel_of(linen_module(name, reduction=2), "reduce") == (32, 16)
    made = nnx.BAM(32, num_convs=3, dilation=2, rngs=flax_nnx.Rngs(0))
    chex.assert_equal_shape([flax_nnx.eval_shape(lambda m, x: m(x), made, X), X])
    chex.assert_shape(made.conv_3.kernel, (3, 3, 2, 2))


def test_linen_nnx_and_equinox_layers_are_maps():
    variables = random_variables("squeeze_excite", 32, dtype=np.float32)
    expected = call(vision.squeeze_excite, X, **maps_of("squeeze_excite", variables))
    kernels = [jnp.asarray(variables["params"][n]["kernel"]) for n in ("reduce", "expand")]

    class Gate(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, x):
            reduce = flax_linen.Dense(8, use_bias=False, name="reduce")
            return vision.squeeze_excite(
                x, reduce, flax_linen.Dense(32, use_bias=False, name="expand")
            )

    assert_close(jax.jit(Gate().apply)(variables, X), expected, FORWARD["float32"])

    def nnx_layer(kernel):
        layer = flax_nnx.Linear(*kernel.shape, use_bias=False, rngs=flax_nnx.Rngs(0))
        layer.kernel[...] = kernel
        return layer

    y = call(vision.squeeze_excite, X, *map(nnx_layer, kernels))
    assert_close(y, expected, FORWARD["float32"])

    def equinox_layer(kernel):
        layer = eqx.nn.Linear(*kernel.shape, use_bias=False, key=jax.random.key(0))
        return jax.vmap(eqx.tree_at(lambda m: m.weight, layer, kernel.T))

    layers = map(equinox_layer, kernels)
    assert_close(call(vision.squeeze_excite, X, *layers), expected, FORWARD["float32"])


def test_bfloat16_pooling_does_not_accumulate_in_bfloat16():

    def pooled(x):
        seen = []
        vision.squeeze_excite(x, lambda z: seen.append(z) or z, lambda z: z)
        return seen[0]

    mean = jax.jit(pooled)(np.ones((1, 64, 64, 4), jnp.bfloat16))
    chex.assert_type(mean, jnp.float32)
    assert (mean == 1).all()


def test_float16_pooling_does_not_overflow():
    x = np.full((1, 64, 64, 4), 60.0, np.float16)
    for name in ("squeeze_excite", "channel_attention", "coordinate_attention", "eca"):
        variables = random_variables(name, 4, dtype=np.float32)
        gate = call(getattr(vision, f"{name}_gate"), x, **maps_of(name, variables))
        chex.assert_tree_all_finite(gate)


def test_places_that_tie_for_the_maximum_share_its_gradient():
    def loss(x):
        return jnp.sum(vision.channel_attention_gate(x, lambda z: z, lambda z: z))

    x = np.array([2, 2, 0, 0], np.float32).reshape(1, 2, 2, 1)  # two places tie at 2
    gradient = np.asarray(jax.jit(jax.grad(loss))(x))[0, :, :, 0]
    slope = 1 / (2 + 2 * math.cosh(3))  # of σ at 3, the sum of the mean 1 and the maximum 2
    chex.assert_trees_all_close(gradient, slope * np.array([[0.75, 0.75], [0.25, 0.25]]), rtol=1e-5)


def test_the_lambda_of_simam_may_be_traced():
    y = jax.jit(vision.simam)(X, e_lambda=1e-2)
    assert_close(y, call(vision.simam, X, e_lambda=1e-2), FORWARD["float32"])


def test_simam_is_stable_on_a_small_deviation_beside_a_large_mean():
    x = 1000 + 0.1 * RNG.normal(size=(1, 8, 8, 4))
    x = x.astype(np.float32)
    gate = call(vision.simam_gate, x)
    deviation = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean((1, 2))[:, None, None]
    variance = (deviation**2).sum((1, 2)) / 63
    expected = oracles.sigmoid(deviation**2 / (4 * (variance[:, None, None] + 1e-4)) + 0.5)
    assert_close(gate, expected, 1e-3)  # the mean itself is rounded to 6e-5


def test_fewer_channels_than_the_reduction_are_refused_not_gated_by_one_half():
    with pytest.raises(ValueError, match="3 // 4 = 0"):
        linen.SqueezeExcite().init(jax.random.key(0), X[..., :3])
    made = nnx.SqueezeExcite(3, hidden_features=1, rngs=flax_nnx.Rngs(0))
    chex.assert_shape(jax.eval_shape(made, X[..., :3]), (2, 6, 5, 3))


def test_coordinate_attention_of_a_wide_image_is_not_that_of_its_transpose():
    variables = random_variables("coordinate_attention", 32, dtype=np.float32)
    bound = maps_of("coordinate_attention", variables)
    y = call(vision.coordinate_attention, X, **bound)
    swapped = {
        **bound,
        "expand_height": bound["expand_width"],
        "expand_width": bound["expand_height"],
    }
    turned = call(vision.coordinate_attention, X.swapaxes(1, 2), **swapped)
    assert_close(np.swapaxes(turned, 1, 2), y, FORWARD["float32"])
    assert not np.allclose(call(vision.coordinate_attention, X, **swapped), y, rtol=1e-2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_images_of_any_layout_are_images(dtype):
    image = RNG.normal(size=(32, 5, 6, 2)).astype(dtype).transpose(3, 2, 1, 0)
    variables = random_variables("cbam", 32, dtype=np.float32)
    y = vision.cbam(image, **maps_of("cbam", variables))
    expected = vision.cbam(jnp.asarray(image, y.dtype), **maps_of("cbam", variables))
    chex.assert_trees_all_equal(y, expected)
    chex.assert_type(vision.simam(image), y.dtype)
    f = maps.layer_norm()
    chex.assert_trees_all_equal(f(image), f(jnp.asarray(image, y.dtype)))


def test_a_norm_of_ones_own_replaces_batch_normalisation():
    norm = functools.partial(flax_linen.GroupNorm, num_groups=2)
    plain = functools.partial(flax_linen.BatchNorm, use_running_average=True)
    for cls in (linen.BAM, linen.CoordinateAttention):
        own, usual = (jax.eval_shape(cls(norm=n).init, jax.random.key(0), X) for n in (norm, plain))
        assert set(own) == {"params"}
        assert set(usual) == {"params", "batch_stats"}

    def group_norm(features, *, rngs):
        return flax_nnx.GroupNorm(features, num_groups=2, rngs=rngs)

    for cls in (nnx.BAM, nnx.CoordinateAttention):
        made = cls(32, norm=group_norm, rngs=flax_nnx.Rngs(0))
        chex.assert_equal_shape([jax.eval_shape(made, X), X])


def test_a_kernel_of_eca_that_reaches_beyond_all_channels_is_warned_of():
    for made in (
        lambda size: nnx.ECA(4, kernel_size=size, rngs=flax_nnx.Rngs(0)),
        lambda size: linen.ECA(kernel_size=size).init(jax.random.key(0), jnp.ones((1, 2, 2, 4))),
    ):
        made(7)
        with pytest.warns(UserWarning, match="2 weights only meet padding"):
            made(9)
