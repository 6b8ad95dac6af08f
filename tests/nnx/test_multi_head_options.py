"""Rotary positions, sinks, gate, RMSNorm and constructor masks of multi-head attention."""

import copy
import dataclasses
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import Softmax, linen, nnx, positions
from tests import multi_head
from tests.multi_head import BASE, OPTIONS, D, M, N, T, X, make
from tests.tolerances import FORWARD, assert_close

TOLERANCE = 4 * FORWARD["float32"]
KEY = jax.random.key(0)


def test_every_option_equals_the_oracle():
    module = make(**OPTIONS)
    assert_close(jax.jit(module)(X), multi_head.expected(module, X), TOLERANCE)


def test_linen_equals_nnx_with_every_option():
    module = make(**OPTIONS)
    layer = linen.MultiHeadAttention(num_heads=N, **OPTIONS)
    parameters = multi_head.parameters_of(module)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), X)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(parameters, shapes)
    names = {"query", "key", "value", "out", "gate", "sink", "query_ln", "key_ln"}
    assert set(parameters) == names
    actual = jax.jit(layer.apply)({"params": parameters}, X)
    assert_close(actual, jax.jit(module)(X), FORWARD["float32"])


def test_constructors_have_the_same_options():
    """Those that only one has are Flax's, or widths that Linen infers."""
    of_nnx = set(inspect.signature(nnx.MultiHeadAttention.__init__).parameters) - {"self"}
    of_linen = {field.name for field in dataclasses.fields(linen.MultiHeadAttention)}
    ends = ("metadata", "promote_dtype")
    only_nnx = {name for name in of_nnx - of_linen if not name.endswith(ends)}
    widths = {"in_features", "in_kv_features", "in_value_features"}
    assert only_nnx == {*widths, "rngs", "keep_rngs"}
    einsums = {"qk_attn_weights_einsum_cls", "attn_weights_value_einsum_cls"}
    of_every_layer = {"name", "parent"}
    assert of_linen - of_nnx == {*einsums, *of_every_layer, "force_fp32_for_softmax"}
    assert set(OPTIONS) | {"sink_init", "shares_key_value"} <= of_nnx & of_linen


def test_every_parameter_has_a_gradient():
    module = make(**OPTIONS)

    def loss(module, x):
        return jnp.sum(jnp.sin(module(x)))

    gradients = flax_nnx.to_pure_dict(flax_nnx.jit(flax_nnx.grad(loss))(module, X))
    largest = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradients)
    assert set(largest) == set(multi_head.parameters_of(module))
    assert min(jax.tree.leaves(largest)) > 1e-3, largest


def test_a_sink_is_that_of_softmax_and_starts_at_0():
    module = nnx.MultiHeadAttention(N, M, sink=True, rngs=flax_nnx.Rngs(0))
    chex.assert_trees_all_equal(module.sink[...], jnp.zeros(N))
    sink = jnp.linspace(-1.0, 2.0, N)
    module.sink[...] = sink
    plain = nnx.MultiHeadAttention(N, M, normalizer=Softmax(sink), rngs=flax_nnx.Rngs(0))
    assert_close(jax.jit(module)(X), jax.jit(plain)(X), FORWARD["float32"])
    ones = make(sink=True)
    chex.assert_trees_all_equal(ones.sink[...], jnp.ones(N))
    message = r"sink=True makes the normaliser Softmax\(sink\), so normalizer must be left out"
    for make_one in (
        lambda: make(sink=True, normalizer=Softmax()),
        lambda: linen.MultiHeadAttention(4, sink=True, normalizer=Softmax()).init(KEY, X),
    ):
        with pytest.raises(ValueError, match=message):
            make_one()


def test_a_gate_of_zeros_halves_each_head():
    gated = nnx.MultiHeadAttention(N, M, output_gate=True, rngs=flax_nnx.Rngs(0))
    plain = nnx.MultiHeadAttention(N, M, rngs=flax_nnx.Rngs(0))
    for parameter in (gated.gate.kernel, gated.gate.bias):
        parameter[...] = jnp.zeros_like(parameter[...])
    assert_close(jax.jit(gated)(X), jax.jit(plain)(X) / 2, FORWARD["float32"])


def test_scores_depend_on_differences_of_positions_only():
    module = make(rotary=positions.Rotary(D, BASE))
    at = jax.jit(lambda p: module(X, is_causal=True, input_positions=p))
    expected = at(np.arange(T))
    assert_close(jax.jit(lambda: module(X, is_causal=True))(), expected, TOLERANCE)
    assert_close(at(np.arange(T) + 5), expected, TOLERANCE)
    assert np.abs(at(np.arange(T) * 2) - expected).max() > 1e-3


def test_positions_with_several_axes_are_given_at_the_call():
    """Here all features read the second axis."""
    places = np.stack([np.arange(T)[::-1], 3 * np.arange(T)], axis=-1)
    several = make(rotary=positions.Rotary(D, BASE, sections=(3,)))
    module = make(rotary=positions.Rotary(D, BASE))
    actual = jax.jit(lambda x: several(x, input_positions=places[:, 1:]))(X)
    expected = jax.jit(lambda x: module(x, input_positions=places[:, 1]))(X)
    assert_close(actual, expected, FORWARD["float32"])
    both = make(rotary=positions.Rotary(D, BASE, sections=(1, 2)))
    assert not np.allclose(jax.jit(lambda x: both(x, input_positions=places))(X), expected)


def test_computation_in_bfloat16():
    module = make(**OPTIONS, dtype=jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(multi_head.parameters_of(module)), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # which Flax's norms need
        output = jax.jit(module)(X)
    chex.assert_type(output, jnp.bfloat16)
    assert_close(output, multi_head.expected(module, X), 2 * FORWARD["bfloat16"])
    half = make(**OPTIONS, param_dtype=jnp.bfloat16)
    chex.assert_type(jax.tree.leaves(multi_head.parameters_of(half)), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        chex.assert_type(jax.eval_shape(half, jnp.asarray(X, jnp.bfloat16)), jnp.bfloat16)


def test_metadata_of_partitioning_reaches_the_new_parameters():
    def partitioned(package, initializer, *names):
        return package.with_partitioning(initializer, names)

    def options(package, initializers):
        return {
            "kernel_init": partitioned(package, initializers.lecun_normal(), None, "heads", None),
            "sink_init": partitioned(package, initializers.zeros_init(), "heads"),
        }

    spec = jax.sharding.PartitionSpec
    wanted = {"query": spec(None, "heads", None), "gate": spec(None, "heads", None)}
    layer = linen.MultiHeadAttention(
        num_heads=N, sink=True, output_gate=True, **options(flax_linen, flax_linen.initializers)
    )
    specs = flax_linen.get_partition_spec(jax.eval_shape(layer.init, jax.random.key(0), X))
    found = {name: specs["params"][name]["kernel"] for name in wanted}
    assert (found, specs["params"]["sink"]) == (wanted, spec("heads"))

    def module():
        return nnx.MultiHeadAttention(
            N,
            M,
            sink=True,
            output_gate=True,
            **options(flax_nnx, flax_nnx.initializers),
            rngs=flax_nnx.Rngs(0),
        )

    with jax.set_mesh(jax.make_mesh((2,), ("heads",))):
        specs = flax_nnx.get_partition_spec(flax_nnx.state(flax_nnx.eval_shape(module)))
    found = {name: specs[name]["kernel"].get_value() for name in wanted}
    assert (found, specs["sink"].get_value()) == (wanted, spec("heads"))


def test_modules_can_be_copied_pickled_split_and_merged():
    module = make(**OPTIONS)
    expected = jax.jit(module)(X)
    graph, parameters = flax_nnx.split(module, flax_nnx.Param)  # settings are no variables
    for same in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        flax_nnx.clone(module),
        flax_nnx.merge(graph, parameters),
    ):
        chex.assert_trees_all_equal(jax.jit(same)(X), expected)
        assert (same.rotary, repr(same.mask)) == (module.rotary, repr(module.mask))


def test_linen_modules_can_be_lifted():
    """`nn.remat`, `nn.jit` and `nn.scan` over layers."""
    layer = linen.MultiHeadAttention(num_heads=N, **OPTIONS)
    variables = {"params": multi_head.parameters_of(make(**OPTIONS))}
    expected = jax.jit(layer.apply)(variables, X)
    for lift in (flax_linen.remat, flax_linen.jit):
        lifted = lift(linen.MultiHeadAttention)(num_heads=N, **OPTIONS)
        assert_close(jax.jit(lifted.apply)(variables, X), expected, FORWARD["float32"])

    class Layer(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, x, _):
            attention = flax_linen.remat(linen.MultiHeadAttention)(num_heads=N, **OPTIONS)
            return x + attention(x), None

    layers = flax_linen.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    stacked = jax.jit(layers.init)(jax.random.key(0), X, None)
    actual, _ = jax.jit(layers.apply)(stacked, X, None)
    hidden = X
    for i in range(2):
        parameters = jax.tree.map(lambda p: p[i], stacked["params"])
        (name,) = parameters
        hidden = hidden + jax.jit(layer.apply)({"params": parameters[name]}, hidden)
    assert_close(actual, hidden, TOLERANCE)


REFUSED = {
    "rotary of other heads": (
        {"rotary": positions.Rotary(8)},
        {},
        ValueError,
        r"heads of the size D = 8 that it was made for, got \[2, 7, 4, 6\]\. Write Rotary\(6",
    ),
    "rotary that is no function": (
        {"rotary": 10_000.0},
        {},
        TypeError,
        "rotary must be a",
    ),
    "positions with nothing to rotate": (
        {},
        {"input_positions": np.arange(T)},
        TypeError,
        "input_positions was given, which attention_fn = dot_product_attention does not take",
    ),
    "an unknown norm": (
        {"normalize_qk": "l2"},
        {},
        ValueError,
        r"normalize_qk must be \"layer\" \(or True\), \"rms\" or False, got 'l2'",
    ),
    "an array as the module's mask": (
        {"mask": np.ones((T, T), bool)},
        {},
        TypeError,
        r"mask of the constructor must be a Mask, got ndarray\. Wrap an array: masks\.Dense\(mask",
    ),
}


@pytest.mark.parametrize("package", ["linen", "nnx"])
@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_fit_are_refused(package, name):
    options, call, kind, message = REFUSED[name]

    def call_module():
        if package == "nnx":
            return make(**options)(X, **call)
        layer = linen.MultiHeadAttention(num_heads=N, **options)
        return layer.init(KEY, X, **call)

    with pytest.raises(kind, match=message):
        call_module()
