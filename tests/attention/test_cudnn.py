"""cuDNN's attention: what it declines, what it is told, and what is made of its results.

No GPU is needed: programs are lowered for one, and the numbers are those of an emulation.
"""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from flax_attn import (
    Coords,
    Dropout,
    Sigmoid,
    Softmax,
    attention,
    dot_product_attention,
    explain,
    masks,
    scores,
)
from flax_attn.attention._core.implementation import Target
from flax_attn.attention._core.normalize import normalize
from flax_attn.attention._core.problem import KEY, QUERY, VALUE
from flax_attn.attention.cudnn import limits
from tests.emulated_cudnn import Emulated, backward, forward
from tests.oracles import attention as oracle
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, T, N, K, D = 2, 160, 4, 2, 64
LONG = 320  # tokens, for which dense attention is not the best of the others
V100, A100, H100, B200, RTX_5090 = (
    Target("cuda", device=name, compute_capability=capability)
    for name, capability in (
        ("Tesla V100-SXM2-16GB", (7, 0)),
        ("NVIDIA A100-SXM4-40GB", (8, 0)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA B200", (10, 0)),
        ("NVIDIA GeForce RTX 5090", (12, 0)),
    )
)
UNKNOWN = Target("cuda")


def arrays(sizes=(T, T, D, D), dtype=jnp.bfloat16, batch=(B,), heads=(N, K)):
    length_q, length_k, head_size, value_size = sizes
    shapes = (
        (*batch, length_q, heads[0], head_size),
        (*batch, length_k, heads[1], head_size),
        (*batch, length_k, heads[1], value_size),
    )
    return [jnp.zeros(shape, dtype) for shape in shapes]


def problem_of(options, **shape):
    rest = {name: x for name, x in options.items() if name not in ("bias", "mask")}
    others = options.get("bias"), options.get("mask")
    return normalize("dot_product_attention", *arrays(**shape), *others, **rest)


def declines(options, target=H100, **shape):
    return attention.Cudnn().declines(problem_of(options, **shape), target)


# ---- what it declines


bias = functools.partial(jnp.zeros, dtype=jnp.bfloat16)
here = Coords.arange(T)
TAKEN = {
    "plain": {},
    "Causal": {"is_causal": True},
    "a window": {"mask": masks.Window(31)},
    "a causal window": {"mask": masks.Causal() & masks.Window(31, 5) & masks.Full()},
    "a window that hides nothing": {"local_window_size": (T, T)},
    "jax's window": {"local_window_size": (7, 0)},
    "lengths": {"key_value_seq_lengths": jnp.array([3, 9]), "is_causal": True},
    "lengths of queries": {"query_seq_lengths": jnp.array([3, 9])},
    "a bias": {"bias": bias((N, T, T)), "is_causal": True},
    "a bias of each": {"bias": bias((B, 1, T, T))},
    "a bias and lengths": {"bias": bias((T, T)), "key_value_seq_lengths": jnp.array([3, 9])},
    "a sink": {"normalizer": Softmax(jnp.zeros(N))},
    "a scale": {"scale": 0.3},
    "a precision": {"precision": (lax.Precision.DEFAULT, "default")},
    "coordinates that nobody reads": {"query_coords": here, "key_coords": here},
    "a plan": {
        "mask": masks.Causal(),
        "plan": masks.make_plan(masks.Causal(), Coords.arange(T), block=(16, 16)),
    },
}


@pytest.mark.parametrize("target", [A100, H100, B200, RTX_5090, UNKNOWN, Target(None)])
@pytest.mark.parametrize("name", TAKEN)
def test_it_takes(name, target):
    options = TAKEN[name]
    assert declines(options, target) is None
    if "bias" in options:
        options = options | {"bias": options["bias"].astype(jnp.float16)}
    assert declines(options, target, dtype=jnp.float16, sizes=(T, T, 72, 72)) is None


REFUSED = {
    "sigmoid": ({"normalizer": Sigmoid()}, r"a softmax only, and the normaliser is Sigmoid"),
    "dropout": ({"dropout": Dropout(0.1, jax.random.key(0))}, "random bits for dropout"),
    "an array as scale": ({"scale": jnp.float32(0.3)}, "needs to know the scale.*Python number"),
    "precision": ({"precision": "highest"}, "one precision, and 'highest'.*Leave it out"),
    "a dense mask": ({"mask": np.ones((T, T), bool)}, "not the mask Dense"),
    "segments": (
        {
            "mask": masks.SameSegment(),
            "query_coords": Coords.from_segments(jnp.arange(T)),
            "key_coords": Coords.from_segments(jnp.arange(T)),
        },
        r"not the mask SameSegment\(\)",
    ),
    "or": ({"mask": masks.Causal() | masks.Window(3)}, r"not the mask Causal\(\) \| Window"),
    "not": ({"mask": masks.Causal() & ~masks.Window(3)}, "not the mask"),
    "a traced window": ({"mask": masks.Window(jnp.int32(3))}, "Window with Python integers"),
    "coordinates": (
        {"mask": masks.Causal(), "query_coords": here, "key_coords": here},
        "counts positions from 0.*query_seq_lengths",
    ),
    "a wide window of coordinates": (
        {"mask": masks.Window(T, T), "query_coords": here, "key_coords": here},
        "counts positions from 0",
    ),
    "valid tokens": (
        {"query_coords": here, "key_coords": Coords.from_lengths(jnp.array([3, 9]), T)},
        "counts positions from 0",
    ),
    "a right side": ({"local_window_size": 3}, r"end at the query itself, and this one at \+3"),
    "the strict past": ({"mask": masks.Window(None, -1)}, "and this one at -1"),
    "a left side": ({"mask": masks.Window(3, None)}, r"windows are causal. Add & Causal\(\)"),
    "an empty window": (
        {"mask": masks.Window(-3, 9) & masks.Causal()},
        r"hold the query itself, and this one begins at \+3",
    ),
    "a bias and a window": (
        {"bias": bias((T, T)), "mask": masks.Window(3)},
        "not take a bias and a window together",
    ),
    "a modifier": ({"score_mod": scores.SoftCap(3.0)}, "only a Bias, and this is SoftCap"),
    "two modifiers": (
        {"bias": bias((T, T)), "score_mod": scores.SoftCap(3.0)},
        "only a Bias, and this is Bias.* >> SoftCap",
    ),
    "a float32 bias": (
        {"bias": jnp.zeros((T, T))},
        r"bias of the query's dtype bfloat16, and this one is float32.*bias.astype",
    ),
    "a bias of keys": ({"bias": bias((1, T))}, r"\[T, S\] = .*, and this one is \[1, 160\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_declines(name):
    options, reason = REFUSED[name]
    for target in (H100, Target(None)):  # a reason for every platform comes before compilation
        assert re.search(reason, declines(options, target)), declines(options, target)


SHAPES = {
    "float32": ({"dtype": jnp.float32}, H100, r"bfloat16 and float16.*x.astype\(jnp.bfloat16\)"),
    "no batch": ({"batch": (0,)}, H100, "an axis has size 0"),
    "no keys": ({"sizes": (T, 0, D, D)}, H100, "an axis has size 0"),
    "a window and more queries": ({"sizes": (T, 32, D, D)}, H100, "as many queries as keys, 32"),
    "D = 20": ({"sizes": (T, T, 20, 20)}, H100, "multiples of 8, and they are D = 20 .*Pad"),
    "Dv = 20": ({"sizes": (T, T, D, 20)}, H100, "multiples of 8.*Dv = 20"),
    "D = 264": ({"sizes": (T, T, 264, 64)}, H100, "up to 256, and there is one of 264"),
    "D = 256 on an A100": ({"sizes": (T, T, 256, 256)}, A100, r"256 on NVIDIA A100.*\(.*8.0\)"),
    "D = 256 on a GeForce": ({"sizes": (T, T, 256, 256)}, RTX_5090, "Hopper and Blackwell only"),
    "D = 256 somewhere": ({"sizes": (T, T, 256, 256)}, UNKNOWN, "on a GPU that is not known"),
    "D = 256 on a kind": (
        {"sizes": (T, T, 256, 256)},
        Target("cuda", device="NVIDIA X"),
        "on NVIDIA X, whose compute capability is not known",
    ),
    "Dv on an A100": ({"sizes": (T, T, 64, 128)}, A100, "Dv = 128 and D = 64 on Hopper.*Pad"),
    "a V100": ({}, V100, "needs Ampere or newer.*Tesla V100"),
    "a CPU": ({}, Target("cpu"), "runs on NVIDIA GPUs, and the program is compiled for cpu"),
    "partitioned": ({}, H100._replace(partitioned=True), "XLA would gather.*Use shard_map"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is_causal and local_window_size count")  # T ≠ S
@pytest.mark.parametrize("name", SHAPES)
def test_it_declines_on_a_target(name):
    shape, target, reason = SHAPES[name]
    found = declines({"local_window_size": (31, 0)}, target, **shape)
    assert found is not None
    assert re.search(reason, found), found


@pytest.mark.parametrize("target", [H100, B200, Target(None)])
@pytest.mark.parametrize("sizes", [(256, 256), (192, 128), (64, 128)])
def test_it_takes_large_and_different_head_sizes_on_hopper_and_blackwell(sizes, target):
    assert declines({}, target, sizes=(T, T, *sizes)) is None


def test_it_declines_a_bias_that_varies_along_some_batch_axes():
    found = declines({"bias": bias((3, 1, 1, T, T))}, batch=(3, 2))
    assert re.search("differs between all batch elements or none", found)
    assert declines({"bias": bias((3, 2, 1, T, T))}, batch=(3, 2)) is None
    assert declines({"bias": bias((1, 1, N, T, T))}, batch=(3, 2)) is None


def test_it_declines_an_old_cudnn(monkeypatch):
    monkeypatch.setattr(limits, "cudnn_version", lambda: 90800)
    assert "needs cuDNN 9.10.2 or newer, and the version that is installed is 9.8.0" in declines({})
    monkeypatch.setattr(limits, "cudnn_version", lambda: 91002)
    assert declines({}) is None


def test_it_declines_a_symbolic_length():
    (size,) = export.symbolic_shape("t")
    x = jax.ShapeDtypeStruct((1, size, 2, 8), jnp.bfloat16)
    attend = lambda q: dot_product_attention(q, q, q, implementation="cudnn")
    with pytest.raises(NotImplementedError, match="'cudnn' declines: a length is symbolic"):
        jax.eval_shape(attend, x)


# ---- which gradients it computes


LEFT = {
    "of the LSE": ({}, {"lse_cotangent": True}, (QUERY,), "no gradient through the LSE"),
    "of a bias": ({"bias": bias((256, 256))}, {}, (QUERY, 3), "right for one batch element only"),
    "of parts": ({}, {"is_part": True}, (KEY,), "added up in float32, and cuDNN rounds"),
    "odd": ({"sizes": (T - 1, T, D, D)}, {}, (VALUE,), "even lengths.* 159 and 160"),
    "odd keys": ({"sizes": (T, T - 1, D, D)}, {}, (VALUE,), "even lengths.* 160 and 159"),
    "beside a bias": ({"bias": bias((T, T))}, {}, (QUERY,), "no multiple of 128, and they are 160"),
    "large": ({"sizes": (T, T, 256, 256)}, {"compute_capability": (10, 0)}, (0,), "on Hopper only"),
    "of sizes": ({"sizes": (T, T, 256, 64)}, {}, (QUERY,), "takes no D = 256 with Dv = 64"),
}
OWN = {
    "plain": {},
    "large": {"sizes": (T, T, 256, 256)},
    "latent": {"sizes": (T, T, 192, 128)},
    "different": {"sizes": (T, T, 64, 128)},
    "beside a bias": {"bias": bias((256, 256)), "sizes": (256, 256, D, D)},
}


def no_gradients(call, target, active):
    call = dict(call)
    shape = {"sizes": call.pop("sizes")} if "sizes" in call else {}
    if "bias" in call:
        shape = {"sizes": (*call["bias"].shape, D, D)}
    problem = problem_of(call, **shape)
    return limits.no_gradients(
        problem, H100._replace(lse_cotangent=False)._replace(**target), active
    )


@pytest.mark.parametrize("name", LEFT)
def test_it_leaves_gradients(name):
    *call, reason = LEFT[name]
    found = no_gradients(*call)
    assert found is not None
    assert re.search(reason, found), found


@pytest.mark.parametrize("name", OWN)
def test_it_computes_gradients(name):
    assert no_gradients(OWN[name], {}, (QUERY, KEY, VALUE)) is None


# ---- what it is told


def calls_of(function, *args):
    """Target, number of operands and settings of each call of cuDNN, lowered for CUDA."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    found = re.findall(r'custom_call @(__cudnn\S+)\(([^)]*)\).*?backend_config = "(.*?)"', text)
    return [
        (name, len(operands.split(",")), json.loads(config.replace(r"\22", '"')))
        for name, operands, config in found
    ]


def and_gradients(function):
    def both(*args):
        output, pull = jax.vjp(function, *args)
        return output, pull(output)

    return both


TOLD = {
    "plain": ({}, "NO_MASK", 0, 3),
    "causal": ({"is_causal": True, "scale": 0.25}, "CAUSAL", 0, 3),
    "window": ({"mask": masks.Window(31)}, "CAUSAL", 32, 3),
    "causal window": ({"local_window_size": (7, 9), "is_causal": True}, "CAUSAL", 8, 3),
    "lengths": ({"key_value_seq_lengths": jnp.array([3, 9])}, "PADDING", 0, 5),
    "both": (
        {"query_seq_lengths": jnp.array([3, 9]), "mask": masks.Window(4)},
        "PADDING_CAUSAL",
        5,
        5,
    ),
    "bias": ({"bias": bias((N, 256, 256)), "is_causal": True}, "CAUSAL", 0, 4),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", TOLD)
def test_it_is_told_mask_scale_window_and_lengths(name, dtype):
    options, mask, window, operands = TOLD[name]
    if "bias" in options:
        options = options | {"bias": options["bias"].astype(dtype)}
    attend = functools.partial(dot_product_attention, implementation="cudnn", **options)
    forward, backward = calls_of(and_gradients(attend), *arrays((256, 256, D, D), dtype))
    kind = "ScaleBiasSoftmax" if name == "bias" else "Softmax"
    assert forward[:2] == (f"__cudnn$fmha{kind}", operands)
    # LSE, output and its cotangent too
    assert backward[:2] == (f"__cudnn$fmha{kind}Backward", operands + 3)
    for call in (forward, backward):
        config = call[2]["cudnn_fmha_backend_config"]
        assert config["mask_type"] == mask
        assert config["sliding_window_length"] == window
        assert config["fmha_scale"] == options.get("scale", 1 / 8)
        assert config["dropout_rate"] == 0
        assert config["intermediate_tensor_shape"]["dimensions"] == ["2", "4", "256", "256"]
        assert config["intermediate_tensor_shape"]["element_type"] == (
            "BF16" if dtype == jnp.bfloat16 else "F16"
        )


def names_of(function, *args):
    return [name for name, _, _ in calls_of(function, *args)]


def test_by_default_it_is_chosen_for_nvidia_gpus():
    x = arrays()
    assert names_of(and_gradients(causal), *x) == [
        "__cudnn$fmhaSoftmax",
        "__cudnn$fmhaSoftmaxBackward",
    ]
    assert names_of(causal, *arrays((64, 64, D, D))) == []  # few scores
    assert names_of(causal, *arrays(dtype=jnp.float32)) == []


def causal(q, k, v, **options):
    return dot_product_attention(q, k, v, is_causal=True, **options)


def through_the_lse(q, k, v):
    output, pull = jax.vjp(functools.partial(causal, return_residual=True), q, k, v)
    return output, pull(output)


def of_the_output_alone(q, k, v):
    output, lse = causal(q, k, v, return_residual=True)
    return lse, jax.vjp(lambda *x: causal(*x, return_residual=True)[0], q, k, v)[1](output)


def with_a_sink(q, k, v):
    return and_gradients(functools.partial(causal, normalizer=Softmax(jnp.zeros(N))))(q, k, v)


def of_the_bias(q, k, v):
    f = lambda b: dot_product_attention(q, k, v, b)
    return and_gradients(f)(bias((N, LONG, LONG)))


def forward_mode(q, k, v):
    return jax.jvp(causal, (q, k, v), (q, k, v))


def without_backward(q, k, v):
    cudnn = attention.Cudnn(backward=False)
    return and_gradients(functools.partial(causal, implementation=cudnn))(q, k, v)


@pytest.mark.parametrize(
    "function", [through_the_lse, with_a_sink, of_the_bias, forward_mode, without_backward]
)
def test_other_derivatives_are_blockwise(function):
    x = arrays((LONG, LONG, D, D))
    (name,) = names_of(function, *x)
    assert "Backward" not in name
    text = jax.jit(function).trace(*x).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" in text


def test_an_lse_without_a_gradient_costs_nothing():
    assert names_of(of_the_output_alone, *arrays())[-1] == "__cudnn$fmhaSoftmaxBackward"


def test_what_is_exported_holds_no_call_of_cudnn_unless_it_is_asked_for():
    x = arrays()
    exported = export.export(jax.jit(causal), platforms=("cpu", "cuda"))(*x)
    assert "__cudnn$" not in exported.mlir_module()
    asked = jax.jit(functools.partial(causal, implementation="cudnn"))
    with pytest.raises(ValueError, match="__cudnn"):
        export.export(asked, platforms=("cuda",))(*x)
    allowed = [export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
    exported = export.export(asked, platforms=("cuda",), disabled_checks=allowed)(*x)
    assert "__cudnn$fmhaSoftmax" in exported.mlir_module()


# ---- the numbers


@pytest.fixture
def emulated(monkeypatch):
    """The implementation, whose calls of cuDNN are computed by the formula."""
    monkeypatch.setattr(attention.cudnn, "cudnn_forward", forward)
    monkeypatch.setattr(attention.cudnn, "cudnn_backward", backward)
    return Emulated()


def draw(*shape, seed=0, dtype=jnp.bfloat16):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (5, 0)},
    "lengths": {"key_value_seq_lengths": np.array([7, 0, 30])},
    "lengths of both": {
        "query_seq_lengths": np.array([0, 20, 3]),
        "key_value_seq_lengths": np.array([7, 18, 30]),
        "is_causal": True,
    },
    "a window beyond the keys": {
        "local_window_size": (2, 0),
        "key_value_seq_lengths": np.array([7, 0, 30]),
    },
}


@pytest.mark.filterwarnings("ignore:.*is_causal and local_window_size count")
@pytest.mark.parametrize("lengths", [(24, 24), (24, 30)])
@pytest.mark.parametrize("name", CASES)
def test_output_lse_and_gradients_are_those_of_the_oracle(name, lengths, emulated):
    """Also those of rows that see nothing, which cuDNN does not define."""
    options = CASES[name]
    (length_q, length_k), batch = lengths, 3
    q, d_output = (draw(batch, length_q, N, 8, seed=seed) for seed in (0, 1))
    k, v = (draw(batch, length_k, K, 8, seed=seed) for seed in (2, 3))
    if "key_value_seq_lengths" in options:  # what lies behind a length does not matter
        far = jnp.arange(length_k)[None, :] >= options["key_value_seq_lengths"][:, None]
        k, v = (jnp.where(far[..., None, None], jnp.nan, x) for x in (k, v))
    if "query_seq_lengths" in options:
        far = jnp.arange(length_q)[None, :] >= options["query_seq_lengths"][:, None]
        q, d_output = (jnp.where(far[..., None, None], jnp.nan, x) for x in (q, d_output))
    attend = lambda *x, **more: dot_product_attention(*x, **options, **more)

    output, lse = attend(q, k, v, implementation=emulated, return_residual=True)
    zeroed = [jnp.nan_to_num(x).astype(jnp.float32) for x in (q, k, v)]
    expected, expected_lse, _ = oracle.dot_product_attention(*zeroed, **options)
    assert output.dtype == q.dtype
    assert lse.dtype == jnp.float32
    assert_close(output, expected, FORWARD["bfloat16"])
    assert_close(lse, expected_lse, FORWARD["float32"])
    cotangent = jnp.nan_to_num(d_output)
    actual = jax.vjp(lambda *x: attend(*x, implementation=emulated), q, k, v)[1](d_output)
    dense = lambda *x: attend(*x, implementation="dense")
    wanted = jax.vjp(dense, *zeroed)[1](cotangent.astype(jnp.float32))
    for a, b in zip(actual, wanted, strict=True):
        assert a.dtype == q.dtype
        assert_close(a, b, GRADIENT["bfloat16"])


def test_a_bias_may_hide_rows(emulated):
    """A row of −∞ gives 0 with LSE −∞, as everywhere; gradients are those of the oracle."""
    q, k, v = (draw(2, 128, heads, 8, seed=heads) for heads in (N, K, K))
    values = np.array(draw(N, 128, 128, dtype=jnp.float32))
    values[1, 5] = values[2, 7, :8] = values[3, 9, 4:] = -np.inf
    values = jnp.asarray(values, jnp.bfloat16)
    attend = lambda *x, **more: dot_product_attention(*x, values, is_causal=True, **more)
    output, lse = attend(q, k, v, implementation=emulated, return_residual=True)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    expected, expected_lse, _ = oracle.dot_product_attention(
        *wide, values.astype(jnp.float32), is_causal=True
    )
    assert (np.isinf(expected_lse).sum(axis=(0, 1)) == [0, 2, 2, 0]).all()
    assert_close(output, expected, FORWARD["bfloat16"])
    assert_close(lse, expected_lse, FORWARD["float32"])
    actual = jax.vjp(lambda *x: attend(*x, implementation=emulated), q, k, v)[1](q)
    dense = lambda *x: dot_product_attention(
        *x, values.astype(jnp.float32), is_causal=True, implementation="dense"
    )
    for a, b in zip(actual, jax.vjp(dense, *wide)[1](wide[0]), strict=True):
        assert_close(a, b, GRADIENT["bfloat16"])


def test_several_batch_axes_and_vmap_are_one_batch_axis(emulated):
    q, k, v = (draw(2, 3, 24, heads, 8, seed=heads) for heads in (N, K, K))
    lengths = jnp.array([[3, 9, 24], [0, 1, 5]])

    def attend(q, k, v, lengths):
        return causal(q, k, v, key_value_seq_lengths=lengths, implementation=emulated)

    expected = attend(*(x.reshape(6, *x.shape[2:]) for x in (q, k, v)), lengths.reshape(-1))
    expected = expected.reshape(q.shape)
    assert_close(attend(q, k, v, lengths), expected, 0)
    assert_close(jax.vmap(attend)(q, k, v, lengths), expected, 0)
    assert_close(attend(q[0, 0], k[0, 0], v[0, 0], lengths[0, 0]), expected[0, 0], 0)


@pytest.mark.parametrize("name", ["the LSE", "a sink", "the bias", "forward mode"])
def test_derivatives_by_another_are_those_of_dense_attention(name, emulated):
    q, k, v = (draw(2, 24, heads, 8, seed=heads) for heads in (N, K, K))
    b, sink = draw(N, 24, 24, seed=7), draw(N, seed=8, dtype=jnp.float32)
    runs = {
        "the LSE": (lambda q, f: f(q, k, v, return_residual=True)[1], q),
        "a sink": (lambda s, f: f(q, k, v, normalizer=Softmax(s)), sink),
        "the bias": (lambda b, f: f(q, k, v, b), b),
        "forward mode": (lambda q, f: f(q, k, v), q),
    }
    run, x = runs[name]

    def derivative(implementation):
        f = functools.partial(
            run,
            f=functools.partial(
                dot_product_attention, is_causal=True, implementation=implementation
            ),
        )
        if name == "forward mode":
            return jax.jvp(f, (x,), (jnp.cos(x),))[1]
        y, pull = jax.vjp(f, x)
        return pull(jnp.cos(y))[0]

    assert_close(derivative(emulated), derivative("dense"), GRADIENT["bfloat16"])


# ---- what is said of it


def test_explain_tells_who_computes_gradients_and_that_they_may_vary(capsys):
    x = arrays((1024, 1024, D, D))
    found = explain(*x, is_causal=True, platform="cuda")
    assert found.implementation == "cudnn"
    assert found.refusals["blockwise"] == "another comes first."
    assert "by cuDNN: deterministic only with XLA's flag --xla_gpu_deterministic_ops" in str(found)
    assert "gradients of a bias or through the LSE, and forward mode, by blockwise" in str(found)
    assert "that the mask or the bias hides must be finite" in str(found)
    assert "must be finite" not in str(explain(*x, platform="cuda"))
    without = explain(*x, platform="cuda", implementation=attention.Cudnn(backward=False))
    assert "derivatives by blockwise: those of cuDNN are turned off by backward=False" in str(
        without
    )
    odd = explain(*arrays((1023, 1024, D, D)), platform="cuda")
    assert "derivatives by blockwise: cuDNN takes even lengths" in str(odd)
    large = explain(*arrays((1024, 1024, 256, 256)), platform="cuda")
    assert large.implementation == "blockwise"
    assert "not known" in large.refusals["cudnn"]
    few = explain(*arrays((8, 8, D, D)), platform="cuda")
    assert few.implementation == "dense"
    assert "few enough" in few.refusals["cudnn"]
    capsys.readouterr()


def test_it_compares_by_value():
    assert attention.Cudnn() == attention.Cudnn(backward=True) != attention.Cudnn(backward=False)
    assert [x.name for x in dataclasses.fields(attention.Cudnn)] == ["backward"]
