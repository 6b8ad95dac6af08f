"""Which implementation runs: by platform, at lowering; and what `explain` says of it."""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

from flax_attn import Coords, Sigmoid, attention, dot_product_attention, explain, masks, scores
from flax_attn.attention import _registry
from flax_attn.normalizers import TopK
from tests.runs import some_by_default
from tests.tolerances import FORWARD, assert_close

Q, K, V = np.random.default_rng(0).normal(size=(3, 2, 300, 4, 16)).astype(np.float32)


def causal(q, k, v, **options):
    return dot_product_attention(q, k, v, is_causal=True, **options)


def value_and_gradients(q, k, v):
    out, pull = jax.vjp(causal, q, k, v)
    return out, *pull(jnp.cos(out))


def test_one_machine_exports_for_every_platform():
    exported = export.export(jax.jit(value_and_gradients), platforms=("cpu", "tpu", "cuda"))(
        Q, K, V
    )
    assert exported.platforms == ("cpu", "tpu", "cuda")
    actual = jax.jit(exported.call)(Q, K, V)
    for a, b in zip(actual, jax.jit(value_and_gradients)(Q, K, V), strict=True):
        assert_close(a, b, FORWARD["float32"])


def loops(platform, function):
    text = export.export(jax.jit(function), platforms=(platform,))(Q, K, V).mlir_module()
    dots = re.findall(r"stablehlo.dot_general.*-> tensor<([0-9x]+)x", text)
    return {dot.split("x")[0] for dot in dots}


def test_blockwise_attention_loops_over_batch_and_heads_on_a_cpu_only():
    def gradients(*qkv):
        return jax.vjp(lambda *x: causal(*x, implementation="blockwise"), *qkv)[1](qkv[0])

    assert loops("cpu", gradients) == {"1"}
    assert loops("tpu", gradients) == loops("cuda", gradients) == {"2"}


@dataclasses.dataclass(frozen=True)
class Fast(attention.Dense):
    """An implementation for a single platform, whose numbers are off by one."""

    name: ClassVar[str] = "fast"
    aliases: ClassVar[tuple[str, ...]] = ()

    def declines(self, problem, target):
        platform = target.platform
        return None if platform in (None, "tpu") else f"it does not run on {platform}."

    def forward(self, problem, target):
        output, lse = super().forward(problem, target)
        return output + 1, lse


@pytest.fixture
def only_tpu(monkeypatch):
    """One more line in the registry."""
    monkeypatch.setattr(_registry, "REGISTRY", (Fast(), *_registry.REGISTRY))


def test_a_new_row_is_taken_where_it_serves(only_tpu, capsys):
    on_tpu = export.export(jax.jit(lambda q, k, v: causal(q, k, v)), platforms=("tpu",))
    assert "while" not in on_tpu(Q, K, V).mlir_module()
    on_cuda = export.export(jax.jit(lambda q, k, v: causal(q, k, v)), platforms=("cuda",))
    assert "while" in on_cuda(Q, K, V).mlir_module()
    assert explain(Q, K, V, platform="tpu").implementation == "fast"
    found = explain(Q, K, V, platform="cpu")
    assert found.implementation == "blockwise"
    assert found.refusals["fast"] == "it does not run on cpu."
    with pytest.raises(NotImplementedError, match="'fast' declines: it does not run on cpu"):
        jax.jit(lambda q: dot_product_attention(q, K, V, implementation="fast")).lower(Q)
    capsys.readouterr()


def test_the_default_is_dense_where_there_is_little_and_blockwise_where_there_is_much(capsys):
    few = jnp.zeros((1, 32, 4, 8))
    assert explain(few, few, few, platform="cpu").implementation == "dense"
    many = jnp.zeros((1, 4096, 8, 64))
    assert explain(many, many, many, platform="cpu").implementation == "blockwise"
    assert "TopK needs whole rows" in explain(Q, K, V, normalizer=TopK(3)).refusals["blockwise"]
    capsys.readouterr()


def test_explain_prints_the_choice_the_refusals_and_the_block_map(capsys):
    q = jnp.zeros((1, 2048, 2, 8))
    found = explain(
        q, q, q, mask=masks.Causal() & masks.Window(600), score_mod=scores.SoftCap(30.0),
        implementation=["pallas_gpu", "blockwise"], platform="cpu",
    )  # fmt: skip
    text = capsys.readouterr().out
    assert text.strip() == str(found)
    assert text.startswith("dot_product_attention on cpu: blockwise")
    assert "not pallas_gpu: it is not part of this version" in text
    assert "not dense: it was not asked for." in text
    assert "Causal() & Window(left=600, right=0)" in text
    assert "SoftCap(cap=30.0)" in text
    assert found.plan.density == pytest.approx(float(np.mean(np.asarray(found.plan.kinds) > 0)))
    assert f"{found.plan.density:.1%} are computed" in text
    assert text.count("▒") > 4
    assert "·" in text


def test_explain_names_what_the_block_map_does_not_understand(capsys):
    @masks.relation
    def odd(q, k):
        return jnp.sin((q.positions - k.positions).astype(jnp.float32)) > 0

    found = explain(Q, K, V, mask=odd(), query_coords=(c := Coords.arange(300)), key_coords=c)
    assert "sin" in found.opaque
    assert found.plan.density == 1.0
    assert "does not understand sin" in capsys.readouterr().out


def test_a_captured_tracer_is_refused_with_the_fix():
    def loss(slope):
        def steep(scores, q, k, head_ids):
            return scores - slope * abs(q.positions - k.positions).astype(scores.dtype)

        return jnp.sum(dot_product_attention(Q, K, V, score_mod=scores.score_mod(steep)))

    with pytest.raises(
        TypeError, match=r"captures a traced array float32\[\].*score_mod\(function, tab"
    ):
        jax.grad(loss)(jnp.float32(0.1))

    @masks.relation
    def known(q, k):
        return k.positions < jnp.asarray(17)  # a constant is no tracer

    dot_product_attention(Q, K, V, mask=known())


def test_a_parameter_instead_gets_its_gradient():
    def steep(scores, q, k, head_ids, *, slope):
        return scores - slope * abs(q.positions - k.positions).astype(scores.dtype)

    def loss(slope, q, k, v, implementation):
        mod = scores.score_mod(steep, slope=slope)
        out = dot_product_attention(q, k, v, score_mod=mod, implementation=implementation)
        return jnp.sum(jnp.sin(out))

    gradient = jax.jit(jax.grad(loss), static_argnums=4)
    expected = gradient(np.float32(0.1), Q, K, V, "dense")
    assert float(expected) != 0
    assert_close(gradient(np.float32(0.1), Q, K, V, "blockwise"), expected, 1e-5)


def test_a_modifier_must_be_elementwise():
    reduce = scores.score_mod(lambda scores, q, k, head_ids: scores.sum(-1))
    with pytest.raises(ValueError, match=r"score_mod returns must broadcast .*\[2, 4, 300, 300\]"):
        dot_product_attention(Q, K, V, score_mod=reduce)


def temporaries(function, length, dtype=jnp.float32):
    x = jax.ShapeDtypeStruct((1, length, 2, 64), dtype)
    compiled = jax.jit(function).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def forward_mode(q, k, v):
    return jax.jvp(causal, (q, k, v), (k, v, q))


@pytest.mark.parametrize(
    "function",
    some_by_default([value_and_gradients, causal, forward_mode], value_and_gradients),
)
def test_memory_grows_with_the_length_and_not_with_its_square(function):
    short, long = temporaries(function, 4096), temporaries(function, 16384)
    assert long <= 4 * short
    assert long < 64 * 2**20 < 16384**2


def test_a_bias_is_not_copied():
    """Tiles of it are: 9 MB with JAX 0.10.2, 23 MB with 0.12.0, of any length."""
    x = jnp.zeros((1, 4096, 2, 16))
    bias = jax.ShapeDtypeStruct((1, 2, 4096, 4096), jnp.float32)
    f = lambda q, b: dot_product_attention(q, x, x, b)
    compiled = jax.jit(f).lower(jax.ShapeDtypeStruct(x.shape, x.dtype), bias).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4096 * 4096 * 4 / 3


def test_the_sigmoid_has_gradients_blockwise_too():
    def loss(bias, q, k, v, implementation):
        out = dot_product_attention(
            q, k, v, normalizer=Sigmoid(bias), implementation=implementation
        )
        return jnp.sum(jnp.sin(out))

    bias = np.arange(4, dtype=np.float32) - 5
    gradient = jax.jit(jax.grad(loss), static_argnums=4)
    assert_close(gradient(bias, Q, K, V, "blockwise"), gradient(bias, Q, K, V, "dense"), 1e-5)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (attention.Blockwise, r"got the class Blockwise\. Call it: Blockwise\(\)"),
        ([attention.Dense], r"got the class Dense"),
        (5, "must be a name or an object, got int"),
    ],
)
def test_what_is_no_implementation_is_refused(choice, message):
    with pytest.raises(TypeError, match=message):
        dot_product_attention(Q, K, V, implementation=choice)


@pytest.mark.parametrize(("field", "size"), [("block_query", 0), ("blocks_per_tile", 3)])
def test_impossible_blocks_are_refused(field, size):
    with pytest.raises(ValueError, match=f"Blockwise: {field} must be .*, got {size}"):
        attention.Blockwise(**{field: size})


def test_implementations_compare_by_value():
    assert attention.Blockwise(4) == attention.Blockwise(block_query=4) != attention.Blockwise(8)
    assert hash(attention.Blockwise(4)) == hash(attention.Blockwise(block_query=4))


def test_the_blocks_are_those_that_the_user_asked_for(capsys):
    blocks = attention.Blockwise(block_query=50, block_key=60)
    assert explain(Q, K, V, implementation=blocks).plan.block == (50, 60)
    expected = causal(Q, K, V)
    actual = dot_product_attention(Q, K, V, is_causal=True, implementation=blocks)
    assert_close(actual, expected, FORWARD["float32"])
    capsys.readouterr()


def test_explain_has_no_block_map_of_nothing(capsys):
    found = explain(Q, K[:, :0], V[:, :0])
    assert found.implementation == "dense"
    assert found.plan is None
    assert "no block map: " in capsys.readouterr().out


@pytest.mark.parametrize("choice", [["dense", "blockwise"], [attention.Blockwise(), "dense"]])
def test_the_first_that_does_not_decline_is_taken(choice, capsys):
    first = choice[0] if isinstance(choice[0], str) else choice[0].name
    assert explain(Q, K, V, implementation=choice).implementation == first
    assert explain(Q, K, V, normalizer=TopK(3), implementation=choice).implementation == "dense"
    capsys.readouterr()


def test_explain_knows_that_xla_divides_what_is_split_over_devices():
    """On TPUs it cannot divide a kernel. A placement can."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v = (jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in (Q, K, V))
    whole, split = (explain(*qkv, platform="tpu") for qkv in ((Q, K, V), (q, k, v)))
    assert (whole.implementation, split.implementation) == ("pallas_tpu", "blockwise")
    assert "cannot divide a kernel" in split.refusals["pallas_tpu"]
    assert explain(q, k, v, platform="cuda").implementation == "blockwise"
