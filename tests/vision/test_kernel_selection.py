"""Selective kernels, split attention and the large kernels: by hand, their claims and traps."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import linen, maps, nnx, vision
from tests.mechanisms import linen_module, maps_of, merged, random_variables
from tests.oracles import vision as oracles
from tests.runs import some_by_default
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(0.3, 1.5, (2, 7, 6, 32)).astype(np.float32)
WIDE = np.asarray(X, np.float64)
LARGE = {  # each with the places that its kernels reach to either side
    "large_kernel_attention": 11,
    "separable_large_kernel_attention": 11,
    "large_selective_kernel": 11 + 3,  # the kernel that selects is 7×7
    "context_anchor_attention": 5 + 3,  # strips of 11 over means of 7×7
}


def identity(x):
    return x


def scale(factor):
    return lambda x: factor * x


def constant(*values):
    """A map that returns these channels whatever it is given."""
    return lambda x: jnp.broadcast_to(jnp.array(values, x.dtype), (*x.shape[:-1], len(values)))


def apply(module, x=X):
    """The output, what is sown, and the random parameters."""
    variables = random_variables("", x.shape[-1], dtype=np.float32, module=module)
    run = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))
    y, sown = run(variables, x)
    return y, sown["intermediates"]["gate"][0], merged(variables)


def call(function, x, *given, **bound):
    """What a function makes of an image, in one program."""
    return jax.jit(lambda x: function(x, *given, **bound))(x)


def count(name, features, **options):
    params = random_variables(name, features, module=linen_module(name, **options))["params"]
    return sum(a.size for a in jax.tree.leaves(params))


# By hand


def test_a_selective_kernel_by_hand():
    # U = (x, 2x), weighed by softmax(log 3, 0) = (3/4, 1/4): x · (3/4 + 2/4).
    y, gate = call(
        vision.selective_kernel,
        np.full((1, 2, 2, 1), 4, np.float32),
        [identity, scale(2.0)],
        [identity, identity],
        identity,
        identity,
        constant(math.log(3), 0.0),
        return_gate=True,
    )
    chex.assert_trees_all_close(y, 5.0)
    chex.assert_trees_all_close(gate.ravel(), np.array([0.75, 0.25]))


def test_a_selective_kernel_reads_the_mean_of_the_sum_of_its_paths():
    x = np.array([1.0, 3.0], np.float32).reshape(1, 1, 2, 1)
    select = constant(0.0, 0.0)

    def mean(x):
        seen = []
        reduce = lambda z: seen.append(z) or z
        args = [identity, scale(2.0)], [identity] * 2, reduce, identity, select
        vision.selective_kernel(x, *args)
        return seen[0]

    chex.assert_trees_all_close(jax.jit(mean)(x), np.array([[2.0 + 4.0]]), rtol=1e-7)


def test_split_attention_orders_splits_first_in_the_image_and_groups_first_in_the_weights():
    # The channels of u are split by split, (4, 8) and (0, 16), one channel in each of two cardinal
    # groups; the logits group by group, (log 3, 0) and (0, log 3).
    log3 = math.log(3)
    y, gate = call(
        vision.split_attention,
        np.ones((1, 2, 2, 1), np.float32),
        constant(4.0, 8.0, 0.0, 16.0),
        identity,
        identity,
        identity,
        constant(log3, 0.0, 0.0, log3),
        groups=2,
        return_gate=True,
    )
    chex.assert_trees_all_close(y[0, 0, 0], np.array([0.75 * 4 + 0.25 * 0, 0.25 * 8 + 0.75 * 16]))
    chex.assert_trees_all_close(gate[0, 0, 0], np.array([[0.75, 0.25], [0.25, 0.75]]))


def test_large_kernel_attention_by_hand():
    # a = 1/2 · 3 · 2x: not bounded, and y grows with the square of x.
    x = np.full((1, 3, 3, 1), 2, np.float32)
    y = call(vision.large_kernel_attention, x, scale(2.0), scale(3.0), scale(0.5))
    chex.assert_trees_all_close(y, 2 * 6, rtol=1e-7)
    five = [scale(2.0), scale(3.0), scale(0.5), scale(1.0), scale(2.0)]
    y = call(vision.separable_large_kernel_attention, x, *five)
    chex.assert_trees_all_close(y, 2 * 2 * 6, rtol=1e-7)


def test_a_large_selective_kernel_by_hand():
    # a_1 = 2x, a_2 = 6x; u of a channel each: 2 and 6, of mean 4 and maximum 6. The masks are σ of
    # them, each by itself: σ(4) · 2 + σ(6) · 6.
    x = np.ones((1, 3, 3, 1), np.float32)
    given = ([scale(2.0), scale(3.0)], [identity, identity], identity, identity)
    y = call(vision.large_selective_kernel, x, *given)
    expected = 2 / (1 + math.exp(-4.0)) + 6 / (1 + math.exp(-6.0))
    chex.assert_trees_all_close(y, expected)


def test_context_anchor_attention_counts_the_zeros_around_the_image():

    def means(x):
        seen = []
        project_in = lambda u: seen.append(u) or u
        vision.context_anchor_attention(x, project_in, *[identity] * 5)
        return seen[0]

    counts = 49 * np.asarray(jax.jit(means)(np.ones((1, 9, 9, 1), np.float32)))[0, :, :, 0]
    chex.assert_trees_all_close(counts[[0, 0, 1, 4], [0, 4, 2, 4]], np.array([16, 28, 30, 49]))


# Claims


def test_the_weights_of_the_kernels_sum_to_one():
    for name, axis in (("selective_kernel", 1), ("split_attention", -2)):
        _, gate, _ = apply(linen_module(name))
        chex.assert_trees_all_close(np.sum(gate, axis), 1.0)
        assert np.min(gate) < 0.45  # and they differ


def test_the_choice_between_equal_kernels_is_no_choice():
    conv = maps.conv(jnp.asarray(RNG.normal(size=(3, 3, 32, 8)), jnp.float32))
    select = maps.dense(jnp.asarray(RNG.normal(size=(8, 24)), jnp.float32))
    args = [conv] * 3, [identity] * 3, identity, identity, select
    expected = np.maximum(jax.jit(conv)(X), 0)
    assert_close(call(vision.selective_kernel, X, *args), expected, FORWARD["float32"])


@pytest.mark.parametrize("name", ["selective_kernel", "split_attention"])
def test_convolutions_may_stride_and_widen(name):
    y, _, p = apply(linen_module(name, out_features=64, strides=2))
    expected = getattr(oracles, name)(WIDE, p, stride=2)
    chex.assert_shape(expected, (2, 4, 3, 64))
    assert_close(y, expected, FORWARD["float32"])


def test_three_kernels_and_other_groups():
    y, _, p = apply(linen_module("selective_kernel", dilations=(1, 2, 3), groups=4))
    chex.assert_shape(p["conv_2"]["kernel"], (3, 3, 8, 32))
    assert_close(y, oracles.selective_kernel(WIDE, p, (1, 2, 3)), FORWARD["float32"])


@pytest.mark.parametrize(("radix", "groups"), [(1, 4), (4, 2)])
def test_every_radix_and_cardinality(radix, groups):
    y, _, p = apply(linen_module("split_attention", radix=radix, groups=groups))
    assert p["reduce"]["kernel"].shape[2] == 32 // groups
    assert_close(y, oracles.split_attention(WIDE, p, radix, groups), FORWARD["float32"])


def test_split_attention_of_radix_one_is_squeeze_excite_after_a_convolution():
    y, _, p = apply(linen_module("split_attention", radix=1))
    p = jax.tree.map(jnp.asarray, p)

    def squeeze_excite(x):
        convolved = jax.nn.relu(maps.batch_norm(**p["conv_norm"])(maps.conv(**p["conv"])(x)))
        layers = [maps.dense(p[k]["kernel"][0, 0], p[k]["bias"]) for k in ("reduce", "expand")]
        reduce = lambda z: maps.batch_norm(**p["reduce_norm"])(layers[0](z))
        return vision.squeeze_excite(convolved, reduce, layers[1])

    assert_close(y, jax.jit(squeeze_excite)(X), FORWARD["float32"])


def test_no_cardinal_group_sees_another():
    module = linen_module("split_attention", radix=2, groups=4)
    variables = random_variables("", 32, dtype=np.float32, module=module)

    def first_group(x):
        return jnp.sum(jnp.sin(module.apply(variables, x)[..., :8]))

    gradient = np.abs(jax.jit(jax.grad(first_group))(X)).max(axis=(0, 1, 2)).reshape(2, 4, 4)
    assert (gradient[:, 0] > 0).all()  # of both splits
    assert (gradient[:, 1:] == 0).all()


@pytest.mark.parametrize("name", LARGE)
def test_a_large_kernel_reaches_as_far_as_it_says(name):
    features, reach = 2, LARGE[name]
    variables = random_variables(name, features, dtype=np.float32)
    size = 2 * reach + 5
    x = RNG.normal(size=(1, size, size, features)).astype(np.float32)
    gate = getattr(vision, f"{name}_gate")

    def centre(x):
        return jnp.sum(gate(x, **maps_of(name, variables))[0, reach + 2, reach + 2])

    gradient = np.abs(jax.jit(jax.grad(centre))(x))[0].max(axis=-1)
    row, column = np.nonzero(gradient > 0)
    assert (row.min(), row.max(), column.min(), column.max()) == (2, size - 3) * 2


@pytest.mark.parametrize("kernel_size", some_by_default([7, 11, 23, 35, 41, 53], 11, 53))
def test_the_strips_together_are_as_long_as_the_kernel(kernel_size):
    local, dilated, dilation = vision.separable_kernel_sizes(kernel_size)
    assert local + dilation * (dilated - 1) == kernel_size
    module = linen.SeparableLargeKernelAttention(kernel_size=kernel_size)
    y, _, p = apply(module, X[:1, :, :, :3])
    expected = oracles.separable_large_kernel_attention(WIDE[:1, :, :, :3], p, dilation)
    assert_close(y, expected, FORWARD["float32"])


def test_strips_are_large_kernels_of_rank_one():
    name = "separable_large_kernel_attention"
    bound = maps_of(name, random_variables(name, 32, dtype=np.float32))
    rows, columns = ("local_row", "dilated_row"), ("local_column", "dilated_column")
    kernels = {key: bound[key].args[0] for key in rows + columns}
    for key in rows + columns:  # without biases, which a column would spread
        dilation = 3 if "dilated" in key else 1
        bound[key] = maps.depthwise_conv(kernels[key], dilation=dilation)
    local_conv, dilated_conv = (
        maps.depthwise_conv(np.multiply(kernels[row], kernels[column]), dilation=dilation)
        for row, column, dilation in zip(rows, columns, (1, 3), strict=True)
    )
    large = (local_conv, dilated_conv, bound["project"])
    expected = call(vision.large_kernel_attention, X, *large)
    strips = call(vision.separable_large_kernel_attention, X, **bound)
    assert_close(strips, expected, 5 * FORWARD["float32"])


def test_parameters_are_as_many_as_in_the_papers():
    c, r = 64, 32  # R is 32 in either, and a normalisation of C channels has 2C
    assert count("selective_kernel", c) == 18 * c * c // 32 + 3 * c * r + 2 * (2 * c + r)
    split = 9 * c * c + (c * r + r) + (2 * c * r + 2 * c)
    assert count("split_attention", c) == split + 2 * (2 * c + r)
    assert count("large_kernel_attention", c) == c * c + 77 * c
    assert count("separable_large_kernel_attention", c) == c * c + 29 * c
    assert count("large_selective_kernel", 16) == 1830
    assert count("context_anchor_attention", c) == 2 * c * c + 4 * c + 24 * c


def test_context_anchor_attention_as_in_the_released_networks():
    """Neither normalisation nor activation, and biases in all maps."""
    options = {"norm": None, "activation_fn": identity, "kernel_size": 13}
    y, _, p = apply(linen.ContextAnchorAttention(**options), X)
    assert set(p) == {"project_in", "row", "column", "project_out"}
    assert all(set(layer) == {"kernel", "bias"} for layer in p.values())
    expected = oracles.context_anchor_attention(WIDE, p)
    assert_close(y, expected, FORWARD["float32"])
    made = flax_nnx.eval_shape(
        lambda: nnx.ContextAnchorAttention(32, **options, rngs=flax_nnx.Rngs(0))
    )
    flax_nnx.update(made, flax_nnx.State(jax.tree.map(jnp.asarray, p)))
    assert_close(jax.jit(made)(X), expected, FORWARD["float32"])
    assert float(np.min(expected / WIDE)) < 0.43


def test_the_gates_of_context_anchor_attention_stay_above_a_bound():
    # SiLU is least, -0.278, at -1.278.
    gate = functools.partial(call, vision.context_anchor_attention_gate)
    assert np.min(gate(X, *[identity] * 4, scale(-1e3), identity)) >= 0.43
    lowest = gate(X[..., :1], *[identity] * 4, constant(-1.2785), identity)
    chex.assert_trees_all_close(lowest, 1 / (1 + math.exp(0.27846)), rtol=1e-5)


# Traps


def test_the_masks_of_a_large_selective_kernel_do_not_compete():
    ones = constant(*[1.0] * 4)
    given = ([identity] * 2, [ones, scale(0.0)], constant(9.0, 9.0), identity)
    gate = call(vision.large_selective_kernel_gate, X[..., :4], *given)
    chex.assert_trees_all_close(gate, 1 / (1 + math.exp(-9.0)))


def test_a_large_selective_kernel_of_odd_width_rounds_down():
    y, _, p = apply(linen.LargeSelectiveKernel(), X[..., :5])
    chex.assert_shape(p["reduce_0"]["kernel"], (5, 2))
    assert_close(y, oracles.large_selective_kernel(WIDE[..., :5], p), FORWARD["float32"])


def test_one_image_in_training_leaves_the_gate_nothing_to_read():
    """Batch normalisation of one pooled vector is its bias: unlike images get one gate."""
    for name in ("selective_kernel", "split_attention"):
        module = linen_module(name, train=True)
        variables = random_variables("", 32, dtype=np.float32, module=linen_module(name))
        mutable = ["intermediates", "batch_stats"]
        run = jax.jit(functools.partial(module.apply, mutable=mutable))
        gates = [run(variables, x)[1] for x in (X[:1], X[1:])]
        first, second = (g["intermediates"]["gate"][0] for g in gates)
        assert_close(first, second, 1e-5)


def test_the_default_norm_of_context_anchor_attention_is_the_detectors():
    """Of a context of 1000 and 1002: mean 1001, variance 1; an update weighs 0.03, and ε = 1e-3."""
    x = np.array([1000.0, 1002.0], np.float32).reshape(2, 1, 1, 1)
    module = linen.ContextAnchorAttention(use_running_average=False, pool_size=1)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    params = {**variables["params"], "project_in": {"kernel": jnp.ones((1, 1))}}
    training = functools.partial(module.apply, mutable=["batch_stats"])
    _, updated = jax.jit(training)({**variables, "params": params}, x)
    statistics = updated["batch_stats"]["norm_in"]
    chex.assert_trees_all_close(statistics["mean"], 0.03 * 1001)
    chex.assert_trees_all_close(statistics["var"], 0.97 + 0.03, rtol=1e-5)
    made = nnx.ContextAnchorAttention(1, rngs=flax_nnx.Rngs(0))
    assert (made.norm_in.momentum, made.norm_in.epsilon) == (0.97, 1e-3)


def test_pooling_of_bfloat16_does_not_accumulate_in_bfloat16():
    select = constant(*[0.0] * 4)
    double = lambda x: jnp.concatenate([x, x], axis=-1)

    def pooled(x, wide):
        seen = []
        see = lambda z: seen.append(z) or z
        vision.selective_kernel(x, [identity] * 2, [identity] * 2, see, identity, select)
        vision.split_attention(x, double, identity, see, identity, select)
        vision.context_anchor_attention(wide, see, *[identity] * 5, pool_size=41)
        return seen

    x, wide = np.ones((1, 64, 64, 2), jnp.bfloat16), np.full((1, 41, 41, 1), 256, jnp.bfloat16)
    *means, context = jax.jit(pooled)(x, wide)
    for mean in means:
        chex.assert_type(mean, jnp.float32)
        assert (mean == 2).all()
    assert float(np.asarray(context)[0, 20, 20, 0]) == 256.0


@pytest.mark.parametrize(
    "name", ["selective_kernel", "split_attention", "context_anchor_attention"]
)
def test_the_phase_is_asked_for(name):
    cls = {
        "selective_kernel": linen.SelectiveKernel,
        "split_attention": linen.SplitAttention,
        "context_anchor_attention": linen.ContextAnchorAttention,
    }[name]
    with pytest.raises(ValueError, match=f"{cls.__name__}: use_running_average must be given"):
        jax.eval_shape(cls().init, jax.random.key(0), X)
    jax.eval_shape(cls(norm=flax_linen.RMSNorm).init, jax.random.key(0), X)


# Errors


def select_two(*convs, norms=2, select=identity):
    return lambda: vision.selective_kernel(X, convs, [identity] * norms, identity, identity, select)


def split(conv=identity, reduce=identity, expand=identity, **options):
    return lambda: vision.split_attention(X, conv, identity, reduce, identity, expand, **options)


def made(cls, features=32, **options):
    return lambda: cls(features, **options, rngs=flax_nnx.Rngs(0))


ERRORS = {
    "one kernel": (select_two(identity, norms=1), "at least 2 kernels to choose from, got 1"),
    "kernels without norms": (select_two(identity, identity, norms=1), "pair up, got 2 and 1"),
    "kernels of unlike strides": (
        select_two(identity, lambda x: x[:, ::2, ::2]),
        "convs[1] must return [*B, H', W', C'] = [2, 7, 6, 32], got [2, 4, 3, 32]",
    ),
    "kernels that lose the batch": (
        select_two(lambda x: x[0], lambda x: x[0]),
        "convs[0] must return [*B, H', W', C'] = [2, 7, 6, 32], got [7, 6, 32]",
    ),
    "a selection for one kernel": (
        select_two(identity, identity),
        "select must return [*B, P · C'] = [2, 64], got [2, 32]",
    ),
    "selective groups": (
        made(nnx.SelectiveKernel, 48),
        "SelectiveKernel: C must be a multiple of groups = 32, got C = 48",
    ),
    "selective groups of the output": (
        made(nnx.SelectiveKernel, out_features=40),
        "SelectiveKernel: out_features must be a multiple of groups = 32, got out_features = 40",
    ),
    "an even selective kernel": (
        made(nnx.SelectiveKernel, kernel_size=4),
        "SelectiveKernel: kernel_size must be odd and at least 1, got 4. Use 5.",
    ),
    "no radix": (split(radix=0), "radix must be at least 1, got 0"),
    "no multiple of radix and groups": (
        split(radix=3, groups=2),
        "a multiple of radix · groups = 3 · 2 channels, got 32",
    ),
    "weights for one split": (
        split(reduce=lambda z: z[..., :5]),
        "expand must return [*B, 1, 1, S · C'] = [2, 1, 1, 32], got [2, 1, 1, 5]",
    ),
    "input channels of splits": (
        made(nnx.SplitAttention, 30, radix=2, groups=2),
        "SplitAttention: C must be a multiple of radix · groups = 4, got C = 30",
    ),
    "output channels of cardinal groups": (
        made(nnx.SplitAttention, 32, groups=4, out_features=30),
        "SplitAttention: out_features must be a multiple of groups = 4, got out_features = 30",
    ),
    "hidden channels of cardinal groups": (
        made(nnx.SplitAttention, 32, groups=4, hidden_features=6),
        "SplitAttention: hidden_features must be a multiple of groups = 4, got hidden_features = 6",
    ),
    "an even large kernel": (
        made(nnx.LargeKernelAttention, dilated_kernel_size=6),
        "dilated_kernel_size must be odd and at least 1, got 6. Use 7.",
    ),
    "no such strips": (
        made(nnx.SeparableLargeKernelAttention, kernel_size=21),
        "kernel_size must be one of [7, 11, 23, 35, 41, 53], got 21",
    ),
    "one channel to select by": (
        made(nnx.LargeSelectiveKernel, 1),
        "LargeSelectiveKernel: C // reduction must be at least 1, got 1 // 2 = 0",
    ),
    "large kernels without dilations": (
        made(nnx.LargeSelectiveKernel, kernel_sizes=(5, 7, 9)),
        "kernel_sizes and dilations must pair up, got 3 and 2",
    ),
    "large kernels without reductions": (
        lambda: vision.large_selective_kernel(X, [identity], [], identity, identity),
        "convs and reduces must pair up, at least 1 of each, got 1 and 0",
    ),
    "reductions of unlike widths": (
        lambda: vision.large_selective_kernel(
            X, [identity] * 2, [identity, lambda u: u[..., :3]], identity, identity
        ),
        "reduces[1] must return [*B, H, W, R] = [2, 7, 6, 32], got [2, 7, 6, 3]",
    ),
    "masks for one kernel": (
        lambda: vision.large_selective_kernel(
            X, [identity] * 2, [identity] * 2, lambda u: u[..., :1], identity
        ),
        "select must return [*B, H, W, P] = [2, 7, 6, 2], got [2, 7, 6, 1]",
    ),
    "a kernel that shrinks": (
        lambda: vision.large_kernel_attention(X, lambda x: x[:, 1:-1], identity, identity),
        "project must return [*B, H, W, C] = [2, 7, 6, 32], got [2, 5, 6, 32]",
    ),
    "an even pool": (
        lambda: vision.context_anchor_attention(X, *[identity] * 6, pool_size=6),
        "context_anchor_attention: pool_size must be odd and at least 1, got 6. Use 7.",
    ),
    "an even strip": (
        made(nnx.ContextAnchorAttention, kernel_size=10),
        "ContextAnchorAttention: kernel_size must be odd and at least 1, got 10. Use 11.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_is_refused_with_the_numbers(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
