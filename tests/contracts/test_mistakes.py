"""What is no map, or no array, is refused by every mechanism and module, with the fix."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

from flax_attn import (
    additive_attention,
    attention,
    dot_product_attention,
    linen,
    maps,
    masks,
    multi_head_attention,
    nnx,
    vision,
)
from tests.mechanisms import facts, linen_module, maps_of, mechanisms, nnx_module, random_variables

every_mechanism = pytest.mark.parametrize("name", mechanisms())
X = jnp.ones((2, 5, 8))
KERNEL = jnp.ones((8, 8))


class Tensor:
    """Looks like a tensor of PyTorch, whose dtypes are its own."""

    __module__ = "torch"
    dtype, shape, ndim = "torch.float32", (2, 5, 8), 3


def arguments(name):
    x = np.ones(facts(name).shape, np.float32)
    bound = maps_of(name, random_variables(name, x.shape[-1], dtype=np.float32))
    return (x, *facts(name).others(x)), bound


def refusal(function, *inputs, **options):
    with pytest.raises(TypeError) as caught:
        function(*inputs, **options)
    return str(caught.value)


def is_map(parameter):
    return any(word in str(parameter.annotation) for word in ("Callable", "Map"))


@every_mechanism
def test_arrays_in_place_of_maps_are_refused_by_name(name):
    inputs, bound = arguments(name)
    parameters = inspect.signature(getattr(vision, name)).parameters
    for parameter in filter(is_map, parameters.values()):
        given = bound.get(parameter.name)
        wrong = [jnp.ones((32, 32)), *([[jnp.ones((32, 32))]] if isinstance(given, list) else [])]
        if parameter.name.endswith("_fn") or parameter.name == "attention":
            wrong = ["relu"]
        for array in wrong:
            message = refusal(getattr(vision, name), *inputs, **{**bound, parameter.name: array})
            assert message.startswith(f"{name}: {parameter.name}"), message
            if isinstance(array, str):
                assert "got 'relu'. Pass the function, as " in message
            else:
                assert message.endswith("got an array [32, 32]. Bind it: maps.dense(kernel).")


def test_every_mechanism_that_has_maps_was_tried():
    tried = [
        name
        for name in mechanisms()
        if any(is_map(p) for p in inspect.signature(getattr(vision, name)).parameters.values())
    ]
    assert len(tried) > 40


LAYER = flax_nnx.Linear(8, 4, rngs=flax_nnx.Rngs(0))
NO_MAPS = {
    "a kernel": (KERNEL, r"an array \[8, 8\]\. Bind it: maps\.dense\(kernel\)\."),
    "of NumPy": (np.ones((8, 8)), r"an array \[8, 8\]\. Bind it"),
    "to heads": (
        jnp.ones((8, 2, 4)),
        r".*Bind it: maps\.conv1d\(kernel\), or to heads maps\.dense",
    ),
    "of a convolution": (jnp.ones((3, 3, 8, 8)), r".*Bind it: maps\.conv\(kernel\)"),
    "of NNX": (LAYER.kernel, r"an array \[8, 4\]\. Bind it: maps\.dense\(kernel\)"),
    "parameters": (
        {"kernel": KERNEL},
        r"dict\. Bind its arrays, as maps\.dense\(query\['ker",
    ),
    "a name": ("silu", r"'silu'\. Pass the function, as jax\.nn\.silu\."),
    "a class": (flax_nnx.Linear, r"the class Linear\. Create an instance\."),
    "a tensor": (Tensor(), r"torch's Tensor\. Bind its weights: maps\.dense\(jnp\.asarray"),
    "a number": (3.0, r"float\. Bind arrays by flax_attn\.maps, such as maps\.dense"),
}


@pytest.mark.parametrize("name", NO_MAPS)
def test_what_is_no_map_is_refused_with_its_own_fix(name):
    given, fix = NO_MAPS[name]
    dense = maps.dense(KERNEL)
    message = "query must be a map from array to array, got "
    with pytest.raises(TypeError, match=f"multi_head_attention: {message}{fix}"):
        multi_head_attention(X, X, given, dense, dense, dense, num_heads=2)
    with pytest.raises(TypeError, match=r"additive_attention: key_map must be a map"):
        additive_attention(X, X, X, dense, given, dense)
    with pytest.raises(TypeError, match=r"squeeze_excite: expand must be a map"):
        vision.squeeze_excite(X[..., None, :], dense, given)


def test_the_other_arguments_of_multi_head_attention_are_checked_too():
    dense = [maps.dense(KERNEL)] * 3
    for names in ({"out": KERNEL}, {"query_norm": KERNEL}, {"attention": "flash"}):
        (name,) = names
        options = {"out": dense[0], "num_heads": 2, **names}
        kind = "function" if name == "attention" else "map"
        message = refusal(multi_head_attention, X, X, *dense, **options)
        assert message.startswith(f"multi_head_attention: {name} must be a {kind}")


@every_mechanism
def test_tensors_of_another_library_are_refused_everywhere(name):
    (_, *others), bound = arguments(name)
    module = flax_nnx.eval_shape(lambda: nnx_module(name, facts(name).shape[-1]))
    other = linen_module(name)
    for owner, call in (
        (name, lambda x: getattr(vision, name)(x, *others, **bound)),
        (type(module).__name__, lambda x: module(x, *others)),
        (type(other).__name__, lambda x: other.init(jax.random.key(0), x, *others)),
    ):
        message = refusal(call, Tensor())
        assert "x must be an array of JAX or NumPy, got torch's Tensor. Convert it: " in message
        assert message.endswith("jnp.asarray(x.detach().cpu().numpy()).")
        assert message.startswith((f"{owner}: ", f"{name}: ", "ChannelAttention: ")), owner


@pytest.mark.parametrize("tensor", ["like", "real"])
def test_tensors_are_refused_in_attention_and_maps(tensor):
    if tensor == "real":
        torch = pytest.importorskip("torch")
        tensor = torch.ones(2, 5, 8)
    else:
        tensor = Tensor()
    dense = maps.dense(KERNEL)
    ours = nnx.MultiHeadAttention(2, 8, rngs=flax_nnx.Rngs(0))
    other = linen.MultiHeadAttention(num_heads=2)
    heads = X.reshape(2, 5, 2, 4)
    for call, owner, name in (
        (lambda t: multi_head_attention(t, X, *[dense] * 4, num_heads=2), "multi_head", "inputs_q"),
        (lambda t: additive_attention(X, t, X, *[dense] * 3), "additive_attention", "key"),
        (lambda t: dot_product_attention(heads, heads, t), "dot_product_attention", "value"),
        (lambda t: dot_product_attention(heads, heads, heads, t), "dot_product", "bias"),
        (ours, "MultiHeadAttention", "inputs_q"),
        (lambda t: ours(X, t), "MultiHeadAttention", "inputs_k"),
        (lambda t: ours(X, mask=t), "MultiHeadAttention", "mask"),
        (lambda t: other.init(jax.random.key(0), t), "MultiHeadAttention", "inputs_q"),
        (maps.dense, "dense", "kernel"),
        (lambda t: maps.dense(KERNEL, t), "dense", "bias"),
        (maps.conv, "conv", "kernel"),
        (maps.depthwise_conv, "depthwise_conv", "kernel"),
        (lambda t: maps.layer_norm(t)(X), "layer_norm", "parameters"),
        (dense, "dense", "x"),
    ):
        message = refusal(call, tensor)
        assert message.startswith(owner), message
        assert f"{name} must be an array of JAX or NumPy, got torch's Tensor." in message


def test_tensors_of_other_libraries_are_converted_otherwise():
    class EagerTensor:
        dtype, shape, ndim = "<dtype: 'float32'>", (2, 5), 2

    with pytest.raises(TypeError, match=r"got .*EagerTensor.*jnp\.asarray\(x\.numpy\(\)\)"):
        maps.layer_norm()(EagerTensor())


def test_lists_of_numbers_are_no_kernels():
    for bind in (maps.dense, maps.conv, maps.conv1d, maps.depthwise_conv):
        with pytest.raises(TypeError, match=r"kernel must be an array, got list\. Wrap it"):
            bind([[1.0]])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_arrays_of_numpy_and_variables_of_nnx_are_arrays(dtype):
    x = np.ones((2, 4, 4, 8), dtype)
    dense = maps.dense(LAYER.kernel), maps.dense(np.ones((4, 8), dtype))
    expected = vision.squeeze_excite(jnp.asarray(x), *dense)
    chex.assert_trees_all_equal(vision.squeeze_excite(x, *dense), expected)


def test_maps_of_every_kind_are_maps():
    x = jnp.ones((2, 4, 4, 8))
    expand = flax_nnx.Linear(4, 8, rngs=flax_nnx.Rngs(0))
    bound = linen._layers.Dense(8).bind({"params": {"kernel": jnp.ones((4, 8)), "bias": X[0, 0]}})
    for one in (expand, bound, lambda h: h @ jnp.ones((4, 8)), jax.jit(maps.dense(KERNEL[:4]))):
        chex.assert_equal_shape([vision.squeeze_excite(x, LAYER, one), x])


def test_a_made_normalisation_and_widths_that_are_no_numbers_are_refused():
    message = r"CoordinateAttention: norm must make the normalisation, got one, BatchNorm\. Pass"
    made = flax_nnx.BatchNorm(8, rngs=flax_nnx.Rngs(0))
    with pytest.raises(TypeError, match=message):
        nnx.CoordinateAttention(16, norm=made, rngs=flax_nnx.Rngs(0))
    with pytest.raises(TypeError, match=message + r".*use_running_average=not train"):
        linen.CoordinateAttention(norm=flax_linen.BatchNorm())
    for width, got in (
        ((2, 4, 4, 16), r"\(2, 4, 4, 16\)"),
        (16.0, r"16\.0"),
        ("16", "'16'"),
        (X, r"an array \[2, 5, 8\]"),
    ):
        with pytest.raises(TypeError, match=f"CBAM: in_features must be one whole .* got {got}"):
            nnx.CBAM(width, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match="CBAM: in_features must be at least 1, got 0"):
        nnx.CBAM(in_features=0, rngs=flax_nnx.Rngs(0))
    for options in ({"num_heads": 2.0}, {"num_heads": 2, "num_kv_heads": 1.0}):
        name = list(options)[-1]
        with pytest.raises(TypeError, match=f"MultiHeadAttention: {name} must be one whole number"):
            nnx.MultiHeadAttention(in_features=8, **options, rngs=flax_nnx.Rngs(0))


def test_images_of_pytorchs_layout_are_recognised():
    with pytest.raises(ValueError, match=r"Images are .*: jnp\.moveaxis\(x, -3, -1\)"):
        nnx.ECA(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 16, 6, 6)))


def test_attention_functions_that_are_none_are_refused():
    for given, message in (
        ("flash", r"attention_fn must be a function .* as flax_attn\.dot_product_attention"),
        (
            attention.attention_fn,
            r"attention_fn: .* got 3 arguments by position.*_fn\(\)\.",
        ),
    ):
        ours = nnx.MultiHeadAttention(2, 8, attention_fn=given, rngs=flax_nnx.Rngs(0))
        with pytest.raises(TypeError, match=message):
            ours(X)
    theirs = flax_linen.MultiHeadAttention(2, attention_fn=attention.attention_fn)
    with pytest.raises(TypeError, match=r"It makes the function .*attention_fn=attention_fn\(\)"):
        theirs.init(jax.random.key(0), X)


def test_lists_of_masks_are_not_read_as_numbers():
    ours = nnx.MultiHeadAttention(2, 8, rngs=flax_nnx.Rngs(0))
    with pytest.raises(TypeError, match="mask must be a boolean array or a Mask, got list"):
        ours(X, mask=[masks.Causal()])
