"""Attention by cuDNN compiles for GPUs: the calls are there, memory is O(T + S), nothing is sent.

Needs `jax-cuda12-plugin` with `jax-cuda12-pjrt` of the same version as JAX. cuDNN itself is needed
only where the programs run.
"""

import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import attention, dot_product_attention
from tests.compiled import every_collective, temporaries
from tests.targets.topologies import topology

pytestmark = pytest.mark.targets

A100, H100, H200 = "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200"
B, T, N, K = 8, 4096, 8, 2
FORWARD, BACKWARD = "Softmax", "SoftmaxBackward"
WHOLE = P()


def plain(q, k, v, *, bias, lengths, **options):
    del bias, lengths
    return dot_product_attention(q, k, v, **options)


def causal(q, k, v, *, bias, lengths, **options):
    del bias, lengths
    return dot_product_attention(q, k, v, is_causal=True, **options)


def window(q, k, v, *, bias, lengths, **options):
    del bias, lengths
    return dot_product_attention(q, k, v, local_window_size=(255, 0), **options)


def padded(q, k, v, *, bias, lengths, **options):
    del bias
    return dot_product_attention(q, k, v, is_causal=True, key_value_seq_lengths=lengths, **options)


def biased(q, k, v, *, bias, lengths, **options):
    del lengths
    return dot_product_attention(q, k, v, bias, is_causal=True, **options)


def deterministic(q, k, v, **given):
    return causal(q, k, v, implementation=attention.Cudnn(backward=False), **given)


def forward(function):
    return function


def backward(function):
    def pulled_back(q, k, v, **given):
        output, pull = jax.vjp(functools.partial(function, **given), q, k, v)
        return output, pull(output)

    return pulled_back


def through_the_lse(function):
    return backward(functools.partial(function, return_residual=True))


def of_the_bias(function):
    def pulled_back(q, k, v, *, bias, lengths):
        f = lambda bias: function(q, k, v, bias=bias, lengths=lengths)
        output, pull = jax.vjp(f, bias)
        return output, pull(output)

    return pulled_back


def lowered(function, gpu, *, dtype=jnp.bfloat16, head_size=128, tokens=T, spec=WHOLE, devices=1):
    mesh = Mesh(np.array(topology("cuda", gpu).devices[:devices]), ("x",), (AxisType.Auto,))

    def array(*shape, dtype=dtype, spec=WHOLE):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    q, k, v = (array(B, tokens, heads, head_size, spec=spec) for heads in (N, K, K))
    given = {
        "bias": array(N, tokens, tokens),
        "lengths": array(B, dtype=jnp.int32, spec=P(*spec[:1])),
    }
    return jax.jit(function).lower(q, k, v, **given)


def compiled(*args, **options):
    """The program, and the calls of cuDNN in it."""
    program = lowered(*args, **options).compile()
    return program, re.findall(r'custom_call_target="__cudnn\$fmha(\w+)"', program.as_text())


@pytest.mark.parametrize("work", [forward, backward])
@pytest.mark.parametrize("case", [plain, causal, window, padded, biased])
@pytest.mark.parametrize("gpu", [A100, H100, H200])
def test_the_calls_are_there_and_memory_is_that_of_the_tokens(gpu, case, work):
    """At most twice as much for twice as many tokens, and no more than three times the inputs."""
    program, calls = compiled(work(case), gpu)
    kind = "ScaleBias" if case is biased else ""
    both = [kind + FORWARD, kind + BACKWARD]
    assert calls == (both[:1] if work is forward else both)
    inputs = 2 * B * T * (N + 2 * K) * 128  # bytes of query, key and value
    assert temporaries(program) < 3 * inputs
    twice, _ = compiled(work(case), gpu, tokens=2 * T)
    assert temporaries(twice) <= 2.01 * temporaries(program) + 2**20


def test_it_compiles_in_seconds(record_property):
    """The calls in less than one; lengths add operations of XLA's own."""
    for gpu in (A100, H100, H200):
        start = time.perf_counter()
        lowered(backward(padded), gpu, tokens=8 * T).compile()
        seconds = time.perf_counter() - start
        record_property(gpu, f"{seconds:.1f} s")
        assert seconds < 10


@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_heads_of_256_are_for_hopper(dtype, head_size):
    call = {"dtype": dtype, "head_size": head_size}
    assert compiled(backward(causal), H100, **call)[1] == [FORWARD, BACKWARD]
    on_a100 = [FORWARD, BACKWARD] if head_size <= 128 else []
    assert compiled(backward(causal), A100, **call)[1] == on_a100


def test_float32_is_not_for_cudnn():
    assert compiled(causal, H100, dtype=jnp.float32, tokens=1024)[1] == []


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (through_the_lse(causal), [FORWARD]),
        (of_the_bias(biased), ["ScaleBias" + FORWARD]),
        (backward(deterministic), [FORWARD]),
    ],
)
def test_gradients_that_cudnn_does_not_give_are_blockwise(function, calls):
    """Without a matrix of scores, but for the gradient of the bias."""
    program, found = compiled(function, H100)
    assert found == calls
    assert " while(" in program.as_text()
    assert temporaries(program) < 4 * B * N * T * T / 4


@pytest.mark.parametrize("work", [forward, backward])
@pytest.mark.parametrize("case", [causal, window, padded])
def test_on_eight_gpus_under_jit_each_computes_its_part_of_the_batch(case, work):
    program, calls = compiled(work(case), H100, spec=P("x"), devices=8)
    assert calls == ([FORWARD] if work is forward else [FORWARD, BACKWARD])
    assert every_collective(program) == []
    alone, _ = compiled(work(case), H100)
    assert temporaries(program) <= temporaries(alone) / 8 + 2**20


def test_on_eight_gpus_split_queries_are_blockwise_where_positions_matter():
    spec = P(None, "x")
    assert compiled(plain, H100, spec=spec, devices=8)[1] == [FORWARD]
    assert compiled(causal, H100, spec=spec, devices=8)[1] == []


def test_within_shard_map_each_gpu_calls_cudnn():
    mesh = Mesh(np.array(topology("cuda", H100).devices), ("x",), (AxisType.Auto,))

    def local(q, k, v):
        return dot_product_attention(q, k, v)

    function = jax.shard_map(backward(local), mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    x = jax.ShapeDtypeStruct((B, T, K, 128), jnp.bfloat16, sharding=NamedSharding(mesh, P("x")))
    program = jax.jit(function).lower(x, x, x).compile()
    assert re.findall(r'"__cudnn\$fmha(\w+)"', program.as_text()) == [FORWARD, BACKWARD]
    assert every_collective(program) == []
