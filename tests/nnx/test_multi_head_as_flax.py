"""The module in the place of Flax's: its draws, attributes, views and attention functions."""

import functools
import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import Coords, attention, dot_product_attention, linen, masks, nnx
from tests.runs import long
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((2, 5, 24), (2, 7, 24)))
MASK = jnp.asarray((RNG.random((2, 1, 5, 5)) < 0.7) | np.eye(5, dtype=bool))
CHOICES = {
    "qkv_features": (None, 16),
    "out_features": (None, 10),
    "num_kv_heads": (None, 2),
    "in_kv_features": (None, 6),
    "use_bias": (True, False),
    "normalize_qk": (False, True),
    "dropout_rate": (0.0, 0.3),
}
COMBINATIONS = [
    {name: value for name, value in zip(CHOICES, values, strict=True) if value is not None}
    for values in itertools.product(*CHOICES.values())
]
DEFAULTS, LAST = COMBINATIONS[0], COMBINATIONS[-1]


def both(**options):
    """Flax's module and ours, of one seed."""
    options = {"bias_init": flax_nnx.initializers.normal(), "decode": False, **options}
    return [
        cls(4, 24, **options, rngs=flax_nnx.Rngs(0))
        for cls in (flax_nnx.MultiHeadAttention, nnx.MultiHeadAttention)
    ]


def pure(module):
    return flax_nnx.to_pure_dict(flax_nnx.state(module))


def assert_same_draws(**options):
    theirs, ours = (pure(m) for m in both(**options))
    chex.assert_trees_all_equal(ours, theirs)


def test_one_seed_draws_flaxs_parameters_with_each_option():
    for options in (DEFAULTS, *({n: LAST[n]} for n in LAST), LAST):
        assert_same_draws(**options)


@long
def test_one_seed_draws_flaxs_parameters_with_every_combination_of_options():
    for options in COMBINATIONS:
        assert_same_draws(**options)


def test_attributes_are_those_of_flax():
    for options in (DEFAULTS, LAST):
        theirs, ours = both(**options, dtype=jnp.bfloat16, param_dtype=jnp.float16)
        for name, value in vars(theirs).items():
            if isinstance(value, flax_nnx.Module | flax_nnx.RngStream) or name[0] == "_":
                continue
            if name.startswith("cache"):
                assert value is None
            elif name != "attention_fn":
                assert getattr(ours, name) == value, name
    ours = nnx.MultiHeadAttention(4, 24, head_dim=5, value_head_dim=3, rngs=flax_nnx.Rngs(0))
    assert (ours.head_dim, ours.value_head_dim, ours.qkv_features) == (5, 3, 20)


def flaxs_functions():
    yield "nnx", flax_nnx.dot_product_attention
    yield "linen", flax_linen.dot_product_attention
    yield "partial", functools.partial(flax_nnx.dot_product_attention, precision="highest")
    yield "attention_fn", attention.attention_fn()


@pytest.mark.parametrize(
    ("name", "function", "broadcast"),
    [
        (name, function, broadcast)
        for name, function in flaxs_functions()
        for broadcast in ((True, False) if name in ("nnx", "attention_fn") else (True,))
    ],
)
def test_flaxs_functions_serve_our_modules_with_dropout(name, function, broadcast):
    options = {"dropout_rate": 0.4, "broadcast_dropout": broadcast, "attention_fn": function}
    theirs, ours = both(**options)
    for call in ({}, {"mask": MASK.astype(jnp.float32)}):
        for deterministic in (True, False):
            theirs.rngs, ours.rngs = (flax_nnx.Rngs(dropout=3).dropout.fork() for _ in range(2))
            expected = theirs(X, deterministic=deterministic, **call) if name != "linen" else None
            actual = ours(X, deterministic=deterministic, **call)
            if expected is None:  # Flax's NNX module does not take Linen's function
                layer = flax_linen.MultiHeadDotProductAttention(num_heads=4, **options)
                key = flax_nnx.Rngs(dropout=3).dropout.fork()()
                expected = layer.apply(
                    {"params": flax_nnx.to_pure_dict(flax_nnx.state(ours, flax_nnx.Param))},
                    X,
                    deterministic=deterministic,
                    dropout_rng=key,
                    **call,
                )
            assert_close(actual, expected, 2 * FORWARD["float32"])

    layer = linen.MultiHeadAttention(num_heads=4, **options)
    params = {"params": flax_nnx.to_pure_dict(flax_nnx.state(ours, flax_nnx.Param))}
    key = jax.random.key(7)
    actual = layer.apply(params, X, mask=MASK, deterministic=False, dropout_rng=key)
    same = flax_linen.MultiHeadDotProductAttention(num_heads=4, **options)
    expected = same.apply(params, X, mask=MASK, deterministic=False, dropout_rng=key)
    assert_close(actual, expected, 2 * FORWARD["float32"])


@pytest.mark.skipif(not hasattr(flax_nnx, "RoPE"), reason="Flax 0.12.12 has it")
def test_flaxs_rotary_attention_serves_our_module():
    function = functools.partial(flax_nnx.dot_product_attention_with_rope, rope=flax_nnx.RoPE())
    theirs, ours = both(dropout_rate=0.4, attention_fn=function)
    theirs.rngs, ours.rngs = (flax_nnx.Rngs(dropout=3).dropout.fork() for _ in range(2))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = theirs(X, deterministic=False)
        assert_close(ours(X, deterministic=False), expected, 2 * FORWARD["float32"])


def test_positions_reach_a_function_that_takes_them():
    def rotated(q, k, v, *, input_positions, **options):
        chex.assert_shape(input_positions, (5,))
        return dot_product_attention(q, k, v, **options)

    ours = nnx.MultiHeadAttention(4, 24, attention_fn=rotated, rngs=flax_nnx.Rngs(0))
    chex.assert_equal_shape([ours(X, input_positions=jnp.arange(5)), X])


def test_a_function_of_ones_own_gets_what_it_takes():
    def everything(q, k, v, **options):
        assert set(options) == {"dropout", "is_causal"}
        return dot_product_attention(q, k, v, **options)

    ours = nnx.MultiHeadAttention(
        4, 24, dropout_rate=0.4, attention_fn=everything, rngs=flax_nnx.Rngs(0)
    )
    chex.assert_equal_shape([ours(X, is_causal=True, deterministic=False), X])


REFUSED = {
    "a mask in Flax's function": (
        {"attention_fn": flax_nnx.dot_product_attention},
        {"mask": masks.Causal()},
        TypeError,
        r"a Mask needs attention_fn = flax_attn.dot_product_attention, got dot_product_attention",
    ),
    "causality in Linen's function": (
        {"attention_fn": flax_linen.dot_product_attention},
        {"is_causal": True},
        TypeError,
        "is_causal was given, which attention_fn = dot_product_attention does not take",
    ),
    "coordinates in Flax's function": (
        {"attention_fn": flax_nnx.dot_product_attention},
        {"query_coords": Coords.arange(5)},
        TypeError,
        "query_coords, key_coords was given",
    ),
    "dropout in JAX's function": (
        {"attention_fn": jax.nn.dot_product_attention, "dropout_rate": 0.1},
        {"deterministic": False},
        TypeError,
        "dropout was given, which attention_fn = dot_product_attention does not take",
    ),
    "rotary positions": (
        {},
        {"input_positions": jnp.arange(5)},
        TypeError,
        "input_positions was given",
    ),
    "batch over devices": (
        {
            "attention_fn": flax_nnx.dot_product_attention,
            "dropout_rate": 0.1,
            "batch_axis_name": "batch",
        },
        {"deterministic": False},
        NotImplementedError,
        "batch_axis_name needs attention_fn = flax_attn.dot_product_attention for dropout",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_function_does_not_take_is_refused_by_name(name):
    options, call, kind, message = REFUSED[name]
    ours = nnx.MultiHeadAttention(4, 24, **options, rngs=flax_nnx.Rngs(0))

    def attend(x):
        keys = {"rngs": flax_nnx.Rngs(dropout=0)} if "dropout_rate" in options else {}
        return ours(x, **call, **keys)

    if "batch_axis_name" in options:
        attend = jax.vmap(attend, axis_name="batch")
    with pytest.raises(kind, match=message):
        attend(X[None] if "batch_axis_name" in options else X)


def test_attention_fn_takes_every_argument_of_flaxs_functions():
    taken = set(inspect.signature(attention.attention_fn()).parameters)
    for function in (flax_nnx.dot_product_attention, flax_linen.dot_product_attention):
        assert set(inspect.signature(function).parameters) <= taken
    q = jnp.ones((2, 5, 4, 6))

    def to_half(arrays, *, dtype):
        assert dtype == jnp.float16
        return [array.astype(jnp.bfloat16) for array in arrays]

    attend = attention.attention_fn()
    out = attend(q, q, q, dtype=jnp.float16, promote_dtype=to_half)
    chex.assert_type(out, jnp.bfloat16)
    attend(q, q, q, einsum_dot_general=jax.lax.dot_general)
    with pytest.raises(NotImplementedError, match=r"einsum_dot_general is not supported: scores"):
        attend(q, q, q, einsum_dot_general=lambda *args, **kwargs: None)
    with pytest.raises(NotImplementedError, match="input_positions is for rotary embeddings"):
        attend(q, q, q, input_positions=jnp.arange(5))
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"attention_fn: dropout_rate must lie in \[0, 1\)"):
            attend(q, q, q, dropout_rate=rate, deterministic=True)


def test_attention_fn_joins_a_mask_of_ours_with_one_of_flax():
    q = jnp.asarray(RNG.normal(size=(2, 5, 4, 6)), jnp.float32)
    expected = dot_product_attention(q, q, q, mask=MASK, is_causal=True)
    for own, given in ((masks.Causal(), MASK), (MASK, masks.Causal()), (None, MASK)):
        attend = attention.attention_fn(mask=own, is_causal=own is None)
        assert_close(attend(q, q, q, mask=given), expected, FORWARD["float32"])
    twice = attention.attention_fn(mask=masks.Causal())(q, q, q, mask=masks.Dense(MASK))
    assert_close(twice, expected, FORWARD["float32"])


@pytest.mark.parametrize("package", ["linen", "nnx"])
def test_inputs_kv_is_another_name_of_inputs_k(package):
    call = make(package)
    chex.assert_trees_all_equal(call(X, inputs_kv=Y), call(X, Y))
    with pytest.raises(ValueError, match="inputs_kv was given with inputs_k or inputs_v"):
        call(X, Y, inputs_kv=Y)


def make(package, **options):
    if package == "nnx":
        return nnx.MultiHeadAttention(4, 24, **options, rngs=flax_nnx.Rngs(0))
    layer = linen.MultiHeadAttention(num_heads=4, **options)
    variables = jax.jit(layer.init)(jax.random.key(0), X)
    return functools.partial(layer.apply, variables)


ADDED = {
    "float": jnp.where(MASK, 0.0, -1e9),
    "infinite": jnp.where(MASK, 0.0, -jnp.inf),
    "half": jnp.where(MASK, 0.0, -1e9).astype(jnp.bfloat16),
    "of NumPy": np.where(MASK, 0.0, np.finfo(np.float32).min),
    "of integers": jnp.where(MASK, 0, -10000),
    "not a number": jnp.where(MASK, 0.0, jnp.nan),
    "weights": jnp.where(MASK, 0.5, 0.0),
}


@pytest.mark.parametrize("package", ["linen", "nnx"])
@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_to_scores_is_no_mask(package, name):
    call, mask = make(package), ADDED[name]
    message = (
        r"mask must be boolean, or hold 0 and 1 only.*Pass an additive mask as a bias: bias=mask"
    )
    with pytest.raises(ValueError, match=message):
        call(X, mask=mask)
    with pytest.raises(ValueError, match=message):  # a constant of the traced function
        jax.jit(lambda x: call(x, mask=mask))(X)
    jax.eval_shape(lambda x, mask: call(x, mask=mask), X, mask)  # its numbers are not known
    q = X.reshape(2, 5, 4, 6)
    with pytest.raises(ValueError, match="attention_fn: mask must be boolean, or hold 0 and 1"):
        attention.attention_fn()(q, q, q, mask=mask)
    with pytest.raises(ValueError, match="attention_fn: mask must be boolean, or hold 0 and 1"):
        attention.attention_fn(mask=mask)


@pytest.mark.parametrize("package", ["linen", "nnx"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, np.float64, bool, list])
def test_zeros_and_ones_of_every_type_are_masks(package, dtype):
    call = make(package)
    mask = np.asarray(MASK).tolist() if dtype is list else np.asarray(MASK).astype(dtype)
    chex.assert_trees_all_equal(call(X, mask=mask), call(X, mask=MASK))


BY_POSITION = {
    "boolean": ((MASK,), TypeError, r"inputs_k must be features of tokens.* got bool \[2, 1, 5"),
    "float": ((MASK.astype(float),), ValueError, r"inputs_k must be .* rank 3.* got \[2, 1, 5, 5"),
    "of two axes": ((MASK[0, 0],), TypeError, r"inputs_k must be .* got bool \[5, 5\]"),
    "a Mask": ((masks.Causal(),), TypeError, r"inputs_k must be .* got Causal\(\)"),
    "for the values": ((X, MASK), TypeError, r"inputs_v must be .* got bool"),
    "a Mask for the values": ((X, masks.Causal()), TypeError, r"inputs_v must be .* got Causal"),
    "without keys": ((None, MASK), ValueError, "inputs_v was given without inputs_k"),
}


@pytest.mark.parametrize("package", ["linen", "nnx"])
@pytest.mark.parametrize("name", BY_POSITION)
def test_a_mask_by_position_is_refused_with_the_fix(package, name):
    inputs, kind, message = BY_POSITION[name]
    with pytest.raises(kind, match=message + r".*\(A mask is passed by name: mask=mask\.\)"):
        make(package)(X, *inputs)


@pytest.mark.parametrize("package", ["linen", "nnx"])
def test_complex_inputs_are_refused_by_name(package):
    z = X.astype(jnp.complex64)
    message = r"must be real floating point, got complex64\. Pass both parts as channels"
    for inputs in ((z,), (X, z), (X, X, z)):
        with pytest.raises(TypeError, match=message):
            make(package)(*inputs)


@pytest.mark.parametrize("rate", [1.0, -0.5, float("nan")])
def test_a_dropout_rate_of_1_is_refused_by_name(rate):
    message = r"MultiHeadAttention: dropout_rate must lie in \[0, 1\), got .*probability"
    with pytest.raises(ValueError, match=message):
        make("nnx", dropout_rate=rate)
    with pytest.raises(ValueError, match=message):
        make("linen", dropout_rate=rate, deterministic=True)


def test_keys_at_the_call_must_be_of_nnx():
    ours = nnx.MultiHeadAttention(4, 24, dropout_rate=0.4, rngs=flax_nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"rngs must be an nnx.Rngs .*Wrap a key: rngs=nnx.Rngs"):
        ours(X, deterministic=False, rngs=jax.random.key(0))


def test_the_function_itself_inside_flaxs_module_names_attention_fn():
    theirs, _ = both(attention_fn=dot_product_attention)
    message = r"got .*dropout_rng, .*Give them attention_fn=flax_attn\.attention\.attention_fn\(\)"
    with pytest.raises(TypeError, match=message):
        theirs(X)
    parameters = inspect.signature(dot_product_attention).parameters.values()
    assert "dropout_rng" not in {p.name for p in parameters}
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters)
    with pytest.raises(TypeError, match="unexpected keyword argument 'windw'"):
        dot_product_attention(X, X, X, windw=3)
