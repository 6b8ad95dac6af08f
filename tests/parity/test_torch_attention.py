"""Softmax attention equals PyTorch's: its own functions and modules, and plain matrix products."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference
from flax import nnx as flax_nnx
from torch_comparison import (
    FACES,
    TOLERANCES,
    Case,
    check_bfloat16,
    check_parity,
    check_sensitivity,
    compiled,
    difference,
    gradients,
    random_arrays,
    values,
)

from flax_attn import (
    additive_attention,
    attention_weights,
    dot_product_attention,
    linen,
    maps,
    multi_head_attention,
    nnx,
    scaled_dot_product_attention,
)

torch = reference.torch
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*is_causal and local_window_size count"),  # T ≠ S
]

B, T, S, N, D = 2, 7, 9, 4, 6
visible = np.random.default_rng(3).random((B, N, T, S)) < 0.6
visible[..., 0] = True
lengths_q, lengths_kv = np.array([7, 4]), np.array([5, 9])
row, col = np.arange(T)[:, None], np.arange(S)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Our arguments, and what they mean to PyTorch: who may see whom, a bias, a scale."""

    heads: int = N
    kv_heads: int = N
    value_size: int = D
    ours: dict = dataclasses.field(default_factory=dict)
    allowed: np.ndarray | None = None
    bias: tuple[int, ...] | None = None
    scale: float | None = None
    is_causal: bool = False  # passed to PyTorch as such


PROBLEMS = {
    "plain": Problem(),
    "boolean_mask": Problem(ours={"mask": visible}, allowed=visible),
    "mask_of_one_head": Problem(ours={"mask": visible[:, :1]}, allowed=visible[:, :1]),
    "additive_mask": Problem(bias=(B, N, T, S)),
    "additive_mask_of_one_row": Problem(bias=(N, 1, S)),
    "mask_and_bias": Problem(ours={"mask": visible}, allowed=visible, bias=(B, 1, T, S)),
    "causal": Problem(ours={"is_causal": True}, is_causal=True),
    "scale": Problem(ours={"scale": 0.3}, scale=0.3),
    "grouped_heads": Problem(kv_heads=2),
    "one_key_head": Problem(kv_heads=1, ours={"mask": visible}, allowed=visible),
    "grouped_causal_scaled": Problem(
        kv_heads=2, ours={"is_causal": True, "scale": 0.7}, is_causal=True, scale=0.7
    ),
    "another_value_size": Problem(value_size=3),
    "key_lengths": Problem(
        ours={"key_value_seq_lengths": lengths_kv},
        allowed=(col < lengths_kv[:, None])[:, None, None],
    ),
    "query_lengths": Problem(  # rows beyond a length see nothing, and give 0 in PyTorch too
        ours={"query_seq_lengths": lengths_q, "key_value_seq_lengths": lengths_kv},
        allowed=(row < lengths_q[:, None, None])[:, None]
        & (col < lengths_kv[:, None])[:, None, None],
    ),
    "window": Problem(
        ours={"local_window_size": (2, 1)}, allowed=((row - col <= 2) & (col - row <= 1))
    ),
}


def problem_inputs(problem):
    shapes = [
        (B, T, problem.heads, D),
        (B, S, problem.kv_heads, D),
        (B, S, problem.kv_heads, problem.value_size),
        (B, T, problem.heads, problem.value_size),  # the output's cotangent
        (B, T, problem.heads),  # the LSE's
    ]
    return random_arrays(0, *shapes, *([] if problem.bias is None else [problem.bias]))


def as_arrays(options):
    return {
        name: jnp.asarray(option) if isinstance(option, np.ndarray) else option
        for name, option in options.items()
    }


def heads_first(array):
    return array.transpose(1, 2)


def by_torch(problem, query, key, value, bias):
    """PyTorch's own function, which gives no LSE."""
    additive = bias
    if problem.allowed is not None:
        additive = torch.tensor(problem.allowed)
        if bias is not None:
            additive = bias.masked_fill(~additive, -math.inf)
    output = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=additive,
        is_causal=problem.is_causal,
        scale=problem.scale,
        enable_gqa=problem.kv_heads != problem.heads,
    )
    return output, None


def by_hand(problem, query, key, value, bias):
    """Two matrix products and a softmax."""
    allowed = problem.allowed
    if problem.is_causal:
        allowed = np.tril(np.ones((T, S), bool))  # T < S: both count from their first token
    allowed = None if allowed is None else torch.tensor(allowed)
    return reference.attention(query, key, value, bias=bias, allowed=allowed, scale=problem.scale)


def torch_results(problem, attend, dtype):
    """Output, LSE and gradients of both, by name."""
    query, key, value, cotangent, lse_cotangent, *bias = (
        torch.tensor(array, dtype=getattr(torch, dtype)) for array in problem_inputs(problem)
    )
    leaves = [leaf.requires_grad_() for leaf in (query, key, value, *bias)]
    output, lse = attend(problem, *map(heads_first, leaves[:3]), bias[0] if bias else None)
    output = heads_first(output)
    results = {"output": values(output)}
    total = (output * cotangent).sum()
    if lse is not None:
        lse = heads_first(lse)
        seen = lse.isfinite()
        total = total + (torch.where(seen, lse, 0) * lse_cotangent).sum()
        results["lse"] = values(lse)
    total.backward()
    names = ("query", "key", "value", "bias")
    return results | {name: gradients(leaf) for name, leaf in zip(names, leaves, strict=False)}


def our_results(problem, dtype, *, with_lse):
    arrays = [jnp.asarray(array, dtype) for array in problem_inputs(problem)]
    query, key, value, cotangent, lse_cotangent, *bias = arrays

    @compiled
    def run(*leaves):
        def forward(*leaves):
            output, lse = dot_product_attention(
                *leaves, return_residual=True, **as_arrays(problem.ours)
            )
            total = jnp.sum(output * cotangent)
            if with_lse:
                total += jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0) * lse_cotangent)
            return total, (output, lse)

        return jax.grad(forward, argnums=tuple(range(len(leaves))), has_aux=True)(*leaves)

    found, (output, lse) = run(query, key, value, *bias)
    chex.assert_type(output, dtype)
    names = ("query", "key", "value", "bias")
    results = {"output": output} | dict(zip(names, found, strict=False))
    return results | ({"lse": lse} if with_lse else {})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("attend", [by_torch, by_hand])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_dot_product_attention_equals_pytorch(problem, attend, dtype, record_property):
    problem = PROBLEMS[problem]
    expected = torch_results(problem, attend, dtype)
    with jax.enable_x64(dtype == "float64"):
        actual = our_results(problem, dtype, with_lse="lse" in expected)
    assert actual.keys() == expected.keys()
    found = {}
    for key, array in expected.items():
        empty = np.isneginf(array)  # the LSE of a row without keys
        chex.assert_trees_all_equal(np.isneginf(np.asarray(actual[key])), empty)
        found[key] = difference(np.where(empty, 0, actual[key]), np.where(empty, 0, array))
    record_property("difference", max(found.values()))
    assert max(found.values()) <= TOLERANCES[dtype], found


@pytest.mark.parametrize("problem", PROBLEMS)
def test_bfloat16_dot_product_attention_is_near_pytorch(problem, record_property):
    problem = PROBLEMS[problem]
    query, key, value, _, _, *bias = (
        jnp.asarray(array, jnp.bfloat16) for array in problem_inputs(problem)
    )
    attend = functools.partial(dot_product_attention, **as_arrays(problem.ours))
    output = compiled(attend)(query, key, value, *bias)
    chex.assert_type(output, jnp.bfloat16)
    wide = [torch.tensor(np.asarray(a, np.float64)) for a in (query, key, value, *bias)]
    expected, _ = by_hand(problem, *map(heads_first, wide[:3]), wide[3] if bias else None)
    found = difference(output, values(heads_first(expected)))
    record_property("difference", found)
    assert found <= TOLERANCES["bfloat16"]


SINGLE = ("plain", "mask_of_one_head", "causal", "scale", "another_value_size", "key_lengths")


@pytest.mark.parametrize("problem", SINGLE)
def test_single_head_attention_equals_pytorch(problem, record_property):
    problem = dataclasses.replace(PROBLEMS[problem], heads=1, kv_heads=1)
    expected = torch_results(problem, by_torch, "float64")
    options = dict(problem.ours)
    if "mask" in options:
        options["mask"] = options["mask"][:, 0]

    @compiled
    def run(query, key, value, cotangent):
        attend = functools.partial(scaled_dot_product_attention, **as_arrays(options))
        output, pullback = jax.vjp(attend, query, key, value)
        return output, *pullback(cotangent)

    with jax.enable_x64(True):
        results = run(*(jnp.asarray(array[:, :, 0]) for array in problem_inputs(problem)[:4]))
    names = ("output", "query", "key", "value")
    found = {
        name: difference(result, expected[name][:, :, 0])
        for name, result in zip(names, results, strict=True)
    }
    record_property("difference", max(found.values()))
    assert max(found.values()) <= TOLERANCES["float64"], found


def test_a_forgotten_mask_bias_or_scale_would_be_seen(record_property):
    plain = torch_results(PROBLEMS["plain"], by_torch, "float64")["output"]
    moved = {
        name: difference(torch_results(problem, by_torch, "float64")["output"], plain)
        for name, problem in PROBLEMS.items()
        if problem.kv_heads == N and problem.value_size == D and name != "plain"
    }
    record_property("difference", min(moved.values()))
    assert min(moved.values()) > 0.01, moved


def test_another_grouping_of_the_heads_would_be_seen():
    query, key, value = (torch.tensor(a) for a in problem_inputs(PROBLEMS["grouped_heads"])[:3])
    attend = functools.partial(by_torch, PROBLEMS["grouped_heads"], bias=None)
    grouped, _ = attend(*map(heads_first, (query, key, value)))
    interleaved, _ = attend(*map(heads_first, (query[:, :, [0, 2, 1, 3]], key, value)))
    assert difference(interleaved[:, [0, 2, 1, 3]], grouped) > 0.01


# Multi-head attention


def split_heads(weight, heads):
    """(N · D, M) -> [M, N, D]."""
    return weight.T.reshape(weight.shape[1], heads, -1)


def join_heads(weight, heads):
    """(M, N · D) -> [N, D, M]."""
    return weight.T.reshape(heads, -1, weight.shape[0])


def projection(weight, bias, heads):
    tree = {"kernel": split_heads(weight, heads)}
    return tree if bias is None else tree | {"bias": bias.reshape(heads, -1)}


def tutorial_params(module, read):
    heads = {"query": module.num_heads, "key": module.num_kv_heads, "value": module.num_kv_heads}
    biased = module.out.bias is not None
    tree = {}
    for name, count in heads.items():
        layer = getattr(module, name)
        tree[name] = projection(read(layer.weight), read(layer.bias) if biased else None, count)
    tree["out"] = {"kernel": join_heads(read(module.out.weight), module.num_heads)}
    if biased:
        tree["out"]["bias"] = read(module.out.bias)
    return tree


def pytorch_params(module, read):
    """Of `torch.nn.MultiheadAttention`, which packs its weights if all widths are equal."""
    names = ("query", "key", "value")
    if module.in_proj_weight is None:
        weights = [read(getattr(module, f"{letter}_proj_weight")) for letter in "qkv"]
    else:
        weights = np.split(read(module.in_proj_weight), 3)
    biased = module.in_proj_bias is not None
    biases = np.split(read(module.in_proj_bias), 3) if biased else [None] * 3
    tree = {
        name: projection(weight, bias, module.num_heads)
        for name, weight, bias in zip(names, weights, biases, strict=True)
    }
    tree["out"] = {"kernel": join_heads(read(module.out_proj.weight), module.num_heads)}
    if biased:
        tree["out"]["bias"] = read(module.out_proj.bias)
    return tree


def multi_head_case(module, params, call, inputs, sizes, options, nnx_sizes):
    """Our three faces of a multi-head attention over queries', keys' and values' inputs."""
    options = as_arrays(options)

    def function(params, statistics, inputs_q, inputs_k=None, inputs_v=None):
        del statistics
        projections = [maps.dense(**params[name]) for name in ("query", "key", "value")]
        inputs_k = inputs_q if inputs_k is None else inputs_k
        out = maps.dense(**params["out"], axes=2)
        return multi_head_attention(
            inputs_q, inputs_k, *projections, out, inputs_v=inputs_v, **options
        )

    return Case(
        reference=reference.randomize(module),
        call=call,
        inputs=inputs,
        params=params,
        function=function,
        linen=lambda dtype: linen.MultiHeadAttention(dtype=dtype, **sizes),
        nnx=lambda dtype: nnx.MultiHeadAttention(
            in_features=inputs[0].shape[-1],
            dtype=dtype,
            rngs=flax_nnx.Rngs(0),
            **sizes,
            **nnx_sizes,
        ),
        options=options,
        # Equal for all keys of a query, what a key's bias adds to the scores leaves the softmax.
        invisible=("key/bias",) if sizes.get("use_bias", True) else (),
    )


def tutorial_case(*, mask=None, kv_heads=None, bias=True):
    widths, d_k, d_v, out_width = (10, 12, 14), 6, 5, 11
    module = reference.MultiHeadAttention(
        N, widths, d_k, d_v, out_width, bias=bias, num_kv_heads=kv_heads
    )
    allowed = None if mask is None else torch.tensor(mask)
    return multi_head_case(
        module,
        tutorial_params,
        lambda module, q, k, v: module(q, k, v, allowed),
        random_arrays(0, (B, T, widths[0]), (B, S, widths[1]), (B, S, widths[2])),
        {
            "num_heads": N,
            "num_kv_heads": kv_heads,
            "head_dim": d_k,
            "value_head_dim": d_v,
            "out_features": out_width,
            "use_bias": bias,
        },
        {} if mask is None else {"mask": mask},
        {"in_kv_features": widths[1], "in_value_features": widths[2]},
    )


def pytorch_case(*, widths=None, bias=True, mask=None, padding=None, causal=False):
    """`torch.nn.MultiheadAttention`, whose masks are True where a query may *not* attend."""
    embed = N * D
    key_width, value_width = widths or (embed, embed)
    module = torch.nn.MultiheadAttention(
        embed, N, bias=bias, kdim=key_width, vdim=value_width, batch_first=True
    )
    masks, options = {}, {}
    if mask is not None:
        masks["attn_mask"] = torch.tensor(~mask).reshape(B * N, T, S)
        options["mask"] = mask
    if padding is not None:
        masks["key_padding_mask"] = torch.tensor(~padding)
        options["mask"] = padding[:, None, None]
    if causal:
        masks["attn_mask"] = torch.tensor(~np.tril(np.ones((T, T), bool)))
        options["is_causal"] = True
        inputs = random_arrays(0, (B, T, embed))
    else:
        inputs = random_arrays(0, (B, T, embed), (B, S, key_width), (B, S, value_width))

    def call(module, *inputs):
        query, key, value = inputs if len(inputs) == 3 else inputs * 3
        return module(query, key, value, need_weights=False, **masks)[0]

    return multi_head_case(
        module,
        pytorch_params,
        call,
        inputs,
        {"num_heads": N, "use_bias": bias},
        options,
        {"in_kv_features": key_width, "in_value_features": value_width},
    )


def additive_case(mask=None):
    """Bahdanau's attention, with queries, keys and values of three widths."""
    allowed = None if mask is None else torch.tensor(mask)
    options = {} if mask is None else {"mask": jnp.asarray(mask)}

    def params(module, read):
        names = ("query", "key", "score")
        return {name: {"kernel": read(getattr(module, name).weight).T} for name in names}

    def function(params, statistics, *inputs):
        names = ("query", "key", "score")
        return additive_attention(*inputs, *(maps.dense(**params[n]) for n in names), **options)

    return Case(
        reference=reference.randomize(reference.AdditiveAttention(10, 12, 8)),
        call=lambda module, *inputs: module(*inputs, allowed),
        inputs=random_arrays(0, (B, T, 10), (B, S, 12), (B, S, 5)),
        params=params,
        function=function,
        linen=lambda dtype: linen.AdditiveAttention(8, dtype=dtype),
        nnx=lambda dtype: nnx.AdditiveAttention(
            10, 8, in_kv_features=12, dtype=dtype, rngs=flax_nnx.Rngs(0)
        ),
        options=options,
    )


CASES = {
    "tutorial": tutorial_case,
    "tutorial_masked": lambda: tutorial_case(mask=visible),
    "tutorial_grouped": lambda: tutorial_case(kv_heads=2, mask=visible),
    "tutorial_without_bias": lambda: tutorial_case(bias=False),
    "pytorch_packed": pytorch_case,
    "pytorch_kdim_vdim": lambda: pytorch_case(widths=(20, 14), mask=visible),
    "pytorch_without_bias": lambda: pytorch_case(widths=(20, 14), bias=False),
    "pytorch_key_padding": lambda: pytorch_case(padding=col < lengths_kv[:, None]),
    "pytorch_causal_self_attention": lambda: pytorch_case(causal=True),
    "additive": additive_case,
    "additive_masked": lambda: additive_case(visible[:, 0]),
}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_multi_head_attention_equals_pytorch(case, face, dtype, record_property):
    check_parity(CASES[case](), face, dtype, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_multi_head_attention_is_near_pytorch(case, face, record_property):
    check_bfloat16(CASES[case](), face, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("case", CASES)
def test_parity_depends_on_every_weight_but_the_bias_of_the_keys(case, face, record_property):
    check_sensitivity(CASES[case](), face, record_property)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_weights_equal_those_of_pytorch(masked, record_property):
    case = pytorch_case(mask=visible) if masked else pytorch_case()
    inputs = [torch.tensor(x) for x in case.inputs]
    mask = torch.tensor(~visible).reshape(B * N, T, S) if masked else None
    _, expected = case.reference(*inputs, attn_mask=mask, average_attn_weights=False)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, case.params(case.reference, values))
        query, key = (
            maps.dense(**params[name])(jnp.asarray(x))
            for name, x in zip(("query", "key"), case.inputs, strict=False)
        )
        found = difference(attention_weights(query, key, **case.options), values(expected))
        _, sown = case.linen(None).apply(
            {"params": params},
            *map(jnp.asarray, case.inputs),
            sow_weights=True,
            mutable=["intermediates"],
            **case.options,
        )
        (weights,) = sown["intermediates"]["attention_weights"]
        found = max(found, difference(weights, values(expected)))
    record_property("difference", found)
    assert found <= TOLERANCES["float64"]
