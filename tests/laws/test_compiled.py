"""What is compiled: once for all numbers, with equal bits, in memory that grows as it should."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, Softmax, dot_product_attention, masks, scores
from flax_attn.coords import PerHead
from tests.runs import long, some_by_default
from tests.small_blocks import IMPLEMENTATIONS

B, N, K, D = 1, 4, 2, 16


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def arguments(length, seed=0):
    """Everything that may change from step to step, as leaves."""
    number = jnp.arange(length, dtype=jnp.int32)
    coords = Coords(
        number,
        segment_ids=number // (length // 3 + seed),
        valid=number < length - 2 - seed,
        log_forget=PerHead(-0.1 * jnp.abs(draw(length, N, seed=seed)).cumsum(0)),
    )
    return {
        "arrays": tuple(draw(B, length, n, D, seed=seed + i) for i, n in enumerate((N, K, K))),
        "mask": masks.Causal() & masks.Window(jnp.int32(length // 2 + seed)) & masks.SameSegment(),
        "score_mod": scores.ALiBi(0.01 * jnp.abs(draw(N, seed=seed)))
        >> scores.Forget()
        >> scores.SoftCap(jnp.float32(5 + seed)),
        "normalizer": Softmax(draw(N, seed=seed)),
        "scale": jnp.float32(0.3 + seed),
        "coords": coords,
        "dropout": Dropout(jnp.float32(0.1 + 0.01 * seed), jax.random.key(seed)),
    }


def attend(x, implementation):
    return dot_product_attention(
        *x["arrays"],
        mask=x["mask"],
        scale=x["scale"],
        score_mod=x["score_mod"],
        normalizer=x["normalizer"],
        dropout=x["dropout"],
        query_coords=x["coords"],
        key_coords=x["coords"],
        implementation=implementation,
    )


@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_new_numbers_do_not_compile_anew_and_equal_ones_give_equal_bits(implementation):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(x):
        loss = lambda x: jnp.sum(jnp.sin(attend(x, implementation)))
        return jax.value_and_grad(loss, allow_int=True)(x)

    results = [step(arguments(40, seed)) for seed in (0, 1, 2, 0)]
    values = [float(value) for value, _ in results]
    assert len(set(values)) == 3
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[3]), strict=True):
        if a.dtype != jax.dtypes.float0:
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def forward(f, q, k, v):
    return f(q, k, v)


def gradient(f, q, k, v):
    return jax.grad(lambda *qkv: jnp.sum(f(*qkv)[0]), (0, 1, 2))(q, k, v)


def derivative(f, q, k, v):
    return jax.jvp(f, (q, k, v), (q, k, v))


def temporaries(implementation, transformation, length):
    """Bytes of compiled temporaries."""
    slopes = jnp.ones(N)

    def f(q, k, v):
        return dot_product_attention(
            q,
            k,
            v,
            mask=masks.Causal() & masks.Window(length // 3),
            score_mod=scores.ALiBi(slopes),
            implementation=implementation,
            return_residual=True,
        )

    shapes = [jax.ShapeDtypeStruct((B, length, n, D), jnp.float32) for n in (N, K, K)]
    compiled = jax.jit(functools.partial(transformation, f)).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@long
@pytest.mark.parametrize(
    "transformation", [forward, gradient, derivative], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_memory_grows_with_the_tokens_or_their_pairs(implementation, transformation):
    length = 2048
    once, twice = (temporaries(implementation, transformation, t) for t in (length, 2 * length))
    pairs = 4 * B * N * (2 * length) ** 2
    if implementation in ("dense", "decode"):
        assert twice >= 3.5 * once
        assert twice >= pairs
    else:
        assert twice <= 2.2 * once
        assert twice < pairs / 10
