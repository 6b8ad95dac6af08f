"""The multi-head modules against Flax's own, and what goes beyond them."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import Softmax, attention, dot_product_attention, linen, nnx
from tests.oracles import attention as oracles
from tests.tolerances import FORWARD, GRADIENT, assert_close

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=s).astype(np.float32) for s in ((2, 5, 24), (2, 7, 24)))
MASK = flax_linen.make_causal_mask(X[..., 0], dtype=bool) & jnp.asarray(
    (RNG.random((2, 1, 5, 5)) < 0.8) | (np.arange(5) == 0)
)
FLAX_OPTIONS = {
    "default": {},
    "widths": {"qkv_features": 16, "out_features": 10},
    "no bias": {"use_bias": False},
    "normalised": {"normalize_qk": True},
}


def randomized(tree):
    return jax.tree.map(
        lambda a: jnp.asarray((RNG.normal(size=a.shape) / 4 + 0.1).astype(a.dtype)), tree
    )


def shapes_of(layer, *inputs):
    return jax.eval_shape(layer.init, jax.random.key(0), *inputs)


def apply(layer, variables, *inputs, **call):
    """What a Linen module gives, in one program."""
    return jax.jit(functools.partial(layer.apply, **call))(variables, *inputs)


def copy_state(source, target):
    flax_nnx.update(target, flax_nnx.state(source, flax_nnx.Param))
    return target


INPUTS = {"self": (X,), "cross": (X, Y), "values": (X, Y, 2 * Y)}


def options_and_inputs(*names):
    """Every kind of inputs by default, and the most general kind with every other option."""
    return [("default", "self"), ("default", "cross"), *((name, "values") for name in names)]


@pytest.mark.parametrize(("name", "inputs"), options_and_inputs(*FLAX_OPTIONS))
def test_linen_weights_move_both_ways(name, inputs):
    theirs = flax_linen.MultiHeadDotProductAttention(num_heads=4, **FLAX_OPTIONS[name])
    ours = linen.MultiHeadAttention(num_heads=4, **FLAX_OPTIONS[name])
    inputs = INPUTS[inputs]
    variables = shapes_of(theirs, *inputs)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, shapes_of(ours, *inputs))
    variables = randomized(variables)
    actual, expected = (apply(layer, variables, *inputs) for layer in (ours, theirs))
    assert_close(actual, expected, 2 * FORWARD["float32"])


@pytest.mark.parametrize(("name", "inputs"), options_and_inputs(*FLAX_OPTIONS, "grouped"))
def test_nnx_weights_move_both_ways(name, inputs):
    options = (FLAX_OPTIONS | {"grouped": {"num_kv_heads": 2}})[name]
    inputs = INPUTS[inputs]
    make = functools.partial(
        flax_nnx.MultiHeadAttention, 4, 24, decode=False, **options, rngs=flax_nnx.Rngs(0)
    )
    theirs, ours = make(), nnx.MultiHeadAttention(4, 24, **options, rngs=flax_nnx.Rngs(1))
    parameters = flax_nnx.state(theirs, flax_nnx.Param)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        flax_nnx.to_pure_dict(parameters),
        flax_nnx.to_pure_dict(flax_nnx.state(ours, flax_nnx.Param)),
    )
    flax_nnx.update(theirs, randomized(parameters))
    actual, expected = (jax.jit(m)(*inputs) for m in (copy_state(theirs, ours), theirs))
    assert_close(actual, expected, 2 * FORWARD["float32"])
    back = copy_state(ours, make())
    chex.assert_trees_all_equal(*(flax_nnx.state(m, flax_nnx.Param) for m in (back, theirs)))


def test_masks_and_causality_equal_flax():
    theirs = flax_nnx.MultiHeadAttention(4, 24, decode=False, rngs=flax_nnx.Rngs(0))
    ours = copy_state(theirs, nnx.MultiHeadAttention(4, 24, rngs=flax_nnx.Rngs(1)))
    for options in ({"mask": MASK}, {"mask": MASK.astype(jnp.float32)}, {"is_causal": True}):
        assert_close(ours(X, **options), theirs(X, **options), 2 * FORWARD["float32"])
    params = flax_nnx.to_pure_dict(flax_nnx.state(theirs, flax_nnx.Param))
    layer = linen.MultiHeadAttention(num_heads=4)
    for options in ({"mask": MASK}, {"mask": MASK.astype(jnp.float32)}, {"is_causal": True}):
        actual = apply(layer, {"params": params}, X, **options)
        assert_close(actual, theirs(X, **options), 2 * FORWARD["float32"])


def test_gradients_equal_flax():
    theirs = flax_linen.MultiHeadDotProductAttention(num_heads=4)
    ours = linen.MultiHeadAttention(num_heads=4)
    variables = randomized(shapes_of(theirs, X))

    def loss(layer, variables, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x, mask=MASK)))

    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, layer), (0, 1)))(variables, X)
        for layer in (ours, theirs)
    )
    largest = max(np.max(np.abs(g)) for g in jax.tree.leaves(expected))
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=GRADIENT["float32"] * largest)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("inputs", [jnp.float32, jnp.bfloat16])
def test_the_dtype_policy_is_that_of_flax(dtype, inputs):
    with jax.numpy_dtype_promotion("standard"):
        theirs = flax_linen.MultiHeadDotProductAttention(num_heads=4, dtype=dtype)
        ours = linen.MultiHeadAttention(num_heads=4, dtype=dtype)
        variables = jax.jit(theirs.init)(jax.random.key(0), X)
        expected = jax.eval_shape(theirs.apply, variables, X.astype(inputs))
        actual = apply(ours, variables, X.astype(inputs))
        chex.assert_type(actual, expected.dtype)
        reference = apply(theirs.clone(dtype=jnp.float32), variables, X)
        assert_close(
            actual, reference, FORWARD[str(actual.dtype)] + 2e-2 * (inputs == jnp.bfloat16)
        )
        made = nnx.MultiHeadAttention(4, 24, dtype=dtype, rngs=flax_nnx.Rngs(0))
        chex.assert_type(jax.eval_shape(made, X.astype(inputs)), expected.dtype)


def test_sown_weights_equal_flax():
    theirs = flax_linen.MultiHeadDotProductAttention(num_heads=4)
    ours = linen.MultiHeadAttention(num_heads=4)
    variables = jax.jit(theirs.init)(jax.random.key(0), X)
    call = {"mask": MASK, "sow_weights": True, "mutable": ["intermediates"]}
    (_, expected), (_, actual) = (apply(m, variables, X, **call) for m in (theirs, ours))
    chex.assert_trees_all_close(actual, expected, atol=1e-6)
    _, nothing = apply(ours, variables, X, mutable=["intermediates"])
    assert not nothing
    made = nnx.MultiHeadAttention(4, 24, rngs=flax_nnx.Rngs(0))
    flax_nnx.update(made, flax_nnx.state(made))
    state = flax_nnx.state(made, flax_nnx.Param)
    flax_nnx.replace_by_pure_dict(state, variables["params"])
    flax_nnx.update(made, state)
    forward = functools.partial(made, mask=MASK, sow_weights=True)
    captured = flax_nnx.capture(lambda m, x: forward(x), flax_nnx.Intermediate)(made, X)[1]
    chex.assert_trees_all_close(
        flax_nnx.to_pure_dict(captured)["attention_weights"],
        expected["intermediates"]["attention_weights"],
        atol=1e-6,
    )


def test_every_width_is_free():
    q, k, v = (RNG.normal(size=s).astype(np.float32) for s in ((2, 5, 12), (2, 7, 6), (2, 7, 4)))
    options = {"num_kv_heads": 2, "head_dim": 5, "value_head_dim": 3, "out_features": 11}
    layer = linen.MultiHeadAttention(num_heads=4, scale=0.3, **options)
    params = randomized(shapes_of(layer, q, k, v))["params"]
    shapes = {name: p["kernel"].shape for name, p in params.items()}
    assert shapes == {
        "query": (12, 4, 5),
        "key": (6, 2, 5),
        "value": (4, 2, 3),
        "out": (4, 3, 11),
    }

    def project(a, p):
        return np.einsum("btm,mnd->btnd", a, p["kernel"]) + np.asarray(p["bias"])

    heads = (project(a, params[name]) for a, name in ((q, "query"), (k, "key"), (v, "value")))
    expected, _, _ = oracles.dot_product_attention(*heads, scale=0.3)
    expected = np.einsum("btnd,ndm->btm", expected, params["out"]["kernel"]) + np.asarray(
        params["out"]["bias"]
    )
    assert_close(apply(layer, {"params": params}, q, k, v), expected, 2 * FORWARD["float32"])
    made = nnx.MultiHeadAttention(
        4, 12, in_kv_features=6, in_value_features=4, scale=0.3, **options, rngs=flax_nnx.Rngs(0)
    )
    state = flax_nnx.state(made)
    flax_nnx.replace_by_pure_dict(state, params)
    flax_nnx.update(made, state)
    assert_close(jax.jit(made)(q, k, v), expected, 2 * FORWARD["float32"])


def test_dropout_is_that_of_the_function_and_follows_the_phase():
    layer = linen.MultiHeadAttention(num_heads=4, dropout_rate=0.4)
    variables = layer.init(jax.random.key(0), X, deterministic=True)
    still = layer.apply(variables, X, deterministic=True)
    key = jax.random.key(5)
    dropped = layer.apply(variables, X, deterministic=False, rngs={"dropout": key})
    assert not np.allclose(dropped, still)
    given = layer.apply(variables, X, deterministic=False, dropout_rng=key)
    by_hand = linen.MultiHeadAttention(
        num_heads=4,
        attention_fn=functools.partial(
            dot_product_attention, dropout=attention.Dropout(0.4, key, broadcast=True)
        ),
    )
    assert_close(given, by_hand.apply(variables, X), FORWARD["float32"])
    with pytest.raises(Exception, match="deterministic"):
        layer.apply(variables, X)

    made = nnx.MultiHeadAttention(4, 24, dropout_rate=0.4, rngs=flax_nnx.Rngs(0))
    made.eval()
    still = made(X)
    chex.assert_trees_all_equal(still, made(X))
    made.train()
    first, second = made(X), made(X)
    assert not np.allclose(first, second)
    assert not np.allclose(first, still)
    again = (made(X, rngs=flax_nnx.Rngs(dropout=1)) for _ in range(2))
    chex.assert_trees_all_equal(*again)
    chex.assert_trees_all_equal(made(X, deterministic=True), still)


def test_normalizers_and_implementations_reach_the_function():
    layer = linen.MultiHeadAttention(num_heads=4, normalizer=Softmax(jnp.float32(3.0)))
    variables = jax.jit(linen.MultiHeadAttention(num_heads=4).init)(jax.random.key(0), X)
    dense = linen.MultiHeadAttention(num_heads=4, implementation="dense")
    assert not np.allclose(apply(layer, variables, X), apply(dense, variables, X))
    with pytest.raises(NotImplementedError, match="'cudnn' declines"):
        linen.MultiHeadAttention(num_heads=4, implementation="cudnn").apply(variables, X)


def test_partitioning_metadata_survives():
    init = flax_linen.with_partitioning(
        flax_linen.initializers.lecun_normal(), (None, "heads", None)
    )
    layer = linen.MultiHeadAttention(num_heads=4, kernel_init=init)
    specs = flax_linen.get_partition_spec(shapes_of(layer, X))
    assert specs["params"]["query"]["kernel"] == jax.sharding.PartitionSpec(None, "heads", None)


@pytest.mark.parametrize("broadcast", [True, False])
def test_attention_fn_serves_flax_modules_in_every_call(broadcast):
    key = jax.random.key(3)
    swap = {"attention_fn": attention.attention_fn()}
    options = {"num_heads": 4, "dropout_rate": 0.3, "broadcast_dropout": broadcast}
    theirs = flax_linen.MultiHeadDotProductAttention(**options)
    ours = flax_linen.MultiHeadDotProductAttention(**options, **swap)
    variables = theirs.init(jax.random.key(0), X, deterministic=True)
    call = {"mask": MASK, "deterministic": True, "sow_weights": True, "mutable": ["intermediates"]}
    expected, actual = (m.apply(variables, X, **call) for m in (theirs, ours))
    chex.assert_trees_all_close(actual, expected, atol=2e-6)
    dropped = ours.apply(variables, X, deterministic=False, dropout_rng=key)
    mine = linen.MultiHeadAttention(**options)
    expected = mine.apply(variables, X, deterministic=False, dropout_rng=key)
    assert_close(dropped, expected, FORWARD["float32"])

    theirs = flax_nnx.MultiHeadAttention(4, 24, decode=False, rngs=flax_nnx.Rngs(0))
    ours = flax_nnx.MultiHeadAttention(4, 24, decode=False, rngs=flax_nnx.Rngs(0), **swap)
    for options in ({}, {"is_causal": True}, {"mask": MASK}):
        assert_close(ours(X, **options), theirs(X, **options), 2 * FORWARD["float32"])


def test_attention_fn_refuses_what_it_cannot_honour():
    layer = flax_linen.MultiHeadDotProductAttention(
        num_heads=4,
        attention_fn=attention.attention_fn(),
        qk_attn_weights_einsum_cls=lambda: jnp.einsum,
    )
    with pytest.raises(NotImplementedError, match="einsum of your own"):
        layer.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="dropout_rng must be a key"):
        attention.attention_fn()(
            X[..., None, :], Y[..., None, :], Y[..., None, :], dropout_rate=0.1
        )
    for option in ("windw", "return_residual", "dropout"):
        with pytest.raises(TypeError, match=f"'{option}' is not an option"):
            attention.attention_fn(**{option: True})


def test_learned_positions_hold_flax_embed_tables():
    table = flax_linen.Embed(16, 8)
    positions = jnp.arange(5)
    variables = table.init(jax.random.key(0), positions)
    ours = linen.LearnedPositions(max_length=16, features=8)
    chex.assert_trees_all_equal(*(layer.apply(variables, positions) for layer in (ours, table)))
    made = nnx.LearnedPositions(16, 8, dtype=jnp.bfloat16, rngs=flax_nnx.Rngs(0))
    chex.assert_type(made(positions), jnp.bfloat16)


def dots_at_highest_precision(function, *arguments):
    dots = re.findall(r"stablehlo.dot_general.*", jax.jit(function).lower(*arguments).as_text())
    return len(dots), sum("precision = [HIGHEST, HIGHEST]" in dot for dot in dots)


def test_attention_fn_joins_its_options_with_those_of_flax():
    bias = jnp.asarray(RNG.normal(size=(5, 5)), jnp.float32)
    own = attention.attention_fn(mask=MASK, bias=bias, precision="highest")
    heads = jnp.asarray(RNG.normal(size=(2, 5, 4, 6)), jnp.float32)
    causal = jnp.tril(jnp.ones((5, 5), bool))
    actual = own(heads, heads, heads, mask=causal, bias=bias)
    expected = dot_product_attention(
        heads, heads, heads, 2 * bias, MASK & causal[None, None], precision="highest"
    )
    assert_close(actual, expected, FORWARD["float32"])
    assert dots_at_highest_precision(own, heads, heads, heads) == (2, 2)


@pytest.mark.parametrize("dtypes", [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)])
def test_inputs_of_two_dtypes_are_promoted_as_in_flax(dtypes):
    q, kv = X.astype(dtypes[0]), Y.astype(dtypes[1])
    options = {"num_heads": 4, "param_dtype": jnp.bfloat16}
    with jax.numpy_dtype_promotion("standard"):
        theirs = flax_linen.MultiHeadDotProductAttention(**options)
        variables = jax.jit(theirs.init)(jax.random.key(0), q, kv)
        expected = apply(theirs, variables, q, kv)
        actual = apply(linen.MultiHeadAttention(**options), variables, q, kv)
        chex.assert_type(actual, expected.dtype)
        assert_close(actual, expected, 2e-2)
        made = nnx.MultiHeadAttention(4, 24, param_dtype=jnp.bfloat16, rngs=flax_nnx.Rngs(0))
        chex.assert_type(jax.eval_shape(made, q, kv), expected.dtype)


def test_sown_weights_follow_every_option():
    options = {"scale": 0.7, "normalizer": Softmax(jnp.float32(1.0))}
    ours = linen.MultiHeadAttention(num_heads=4, **options)
    variables = randomized(shapes_of(ours, X))
    bias = jnp.asarray(RNG.normal(size=(4, 5, 5)), jnp.float32)
    call = {"bias": bias, "mask": MASK, "sow_weights": True, "mutable": ["intermediates"]}
    output, sown = apply(ours, variables, X, **call)
    weights = sown["intermediates"]["attention_weights"][0]
    p = variables["params"]
    value = np.einsum("btm,mnd->btnd", X, p["value"]["kernel"]) + np.asarray(p["value"]["bias"])
    heads = np.einsum("bnts,bsnd->btnd", weights, value)
    expected = np.einsum("btnd,ndm->btm", heads, p["out"]["kernel"]) + np.asarray(p["out"]["bias"])
    assert_close(output, expected, 2 * FORWARD["float32"])

    swapped = flax_linen.MultiHeadDotProductAttention(
        num_heads=4, attention_fn=attention.attention_fn(bias=bias, **options)
    )
    call = {"mask": MASK, "sow_weights": True, "mutable": ["intermediates"]}
    output, sown = apply(swapped, variables, X, **call)
    assert_close(output, expected, 2 * FORWARD["float32"])
    assert_close(sown["intermediates"]["attention_weights"][0], weights, FORWARD["float32"])


def test_precision_reaches_every_dot_of_the_modules():
    layer = linen.MultiHeadAttention(num_heads=4, precision="highest")
    variables = randomized(shapes_of(layer, X))
    made = nnx.MultiHeadAttention(4, 24, precision="highest", rngs=flax_nnx.Rngs(0))
    for f in (lambda x: layer.apply(variables, x), made):
        assert dots_at_highest_precision(f, X) == (6, 6)
