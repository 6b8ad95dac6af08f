"""Attention under transformations of JAX that are used less often."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import jet

from flax_attn import (
    Coords,
    Dropout,
    Softmax,
    dot_product_attention,
    masks,
    normalizers,
    scores,
)
from tests.small_blocks import IMPLEMENTATIONS
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 40, 4, 8)).astype(np.float32)
IDS = np.sort(RNG.integers(0, 3, X.shape[:2]), axis=-1).astype(np.int32)


def attend(q, k, v, implementation=None):
    return dot_product_attention(q, k, v, is_causal=True, implementation=implementation)


TRANSFORMED = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(lambda x: jnp.sum(jnp.sin(f(x)))),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1],
    "vmap": jax.vmap,
    "jit": jax.jit,
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("transformation", TRANSFORMED)
def test_without_jit(transformation, implementation):
    def f(x):
        other = X[0] if x.ndim == 3 else X
        return attend(x, other, other, implementation)

    run = TRANSFORMED[transformation](f)
    with jax.disable_jit():
        found = run(X)
    assert_close(found, run(X), FORWARD["float32"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_is_transposed_in_the_value(implementation):
    """Outputs are P V, so the transpose is Pᵀ; ⟨P V, C⟩ = ⟨V, Pᵀ C⟩."""
    value, cotangent = np.sin(X), np.cos(X)

    @jax.jit
    def run(x, value, cotangent):
        f = lambda v: attend(x, x, v, implementation)
        (found,) = jax.linear_transpose(f, value)(cotangent)
        output, pull = jax.vjp(f, value)
        return output, found, pull(cotangent)[0]

    output, found, expected = run(X, value, cotangent)
    chex.assert_trees_all_close(np.vdot(output, cotangent), np.vdot(value, found), rtol=1e-5)
    assert_close(found, expected, FORWARD["float32"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_its_derivative_is_transposed_in_the_cotangent(implementation):
    @jax.jit
    def run(x):
        output, pull = jax.vjp(lambda v: attend(x, x, v, implementation), x)
        (found,) = jax.linear_transpose(lambda c: pull(c)[0], x)(x)
        return found, output

    assert_close(*run(X), FORWARD["float32"])


def test_it_is_not_transposed_in_the_query():
    with pytest.raises(NotImplementedError, match="linear in the value alone"):
        jax.linear_transpose(lambda q: attend(q, X, X), X)(X)


def test_jet_is_refused():
    with pytest.raises(NotImplementedError, match=r"jet has no rule for attention. Nest jax.jvp"):
        jet.jet(lambda q: attend(q, X, X), (X,), ((X, X),))


def packed(x, ids, **options):
    coords = Coords.from_segments(ids)
    mask = masks.Causal() & masks.SameSegment()
    options = {"mask": mask, "query_coords": coords, "key_coords": coords} | options
    return dot_product_attention(x, x, x, **options)


EXPORTED = {
    "causal": lambda x, ids, **options: dot_product_attention(x, x, x, is_causal=True, **options),
    "window": lambda x, ids, **options: dot_product_attention(
        x, x, x, mask=masks.Window(3), score_mod=scores.ALiBi.for_heads(4), **options
    ),
    "table": lambda x, ids, **options: dot_product_attention(
        x, x, x, score_mod=scores.T5Bias(jnp.ones((32, 4))), normalizer=Softmax(0.5), **options
    ),
    "dropout": lambda x, ids, **options: dot_product_attention(
        x, x, x, dropout=Dropout(0.3, jax.random.key(0)), **options
    ),
    "packed": packed,
}


def exported(function, shape):
    scope = export.SymbolicScope()
    x = jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.float32)
    ids = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)
    return export.export(jax.jit(function))(x, ids).call


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_with_a_symbolic_length(name):
    call = exported(EXPORTED[name], "b, t, 4, 8")
    for length in (40, 7) if name == "packed" else (7,):
        x, ids = X[:, :length], IDS[:, :length]
        assert_close(call(x, ids), jax.jit(EXPORTED[name])(x, ids), FORWARD["float32"])


def test_a_gradient_exported_with_a_symbolic_length():
    def gradient(x, ids):
        return jax.grad(lambda x: jnp.sum(jnp.sin(packed(x, ids))))(x)

    found = exported(gradient, "b, t, 4, 8")(X, IDS)
    assert_close(found, jax.jit(gradient)(X, IDS), FORWARD["float32"])


def test_exported_blockwise_with_a_symbolic_batch():
    def f(x, ids):
        return packed(x, ids, implementation="blockwise")

    call = exported(f, "b, 40, 4, 8")
    for batch in (2, 1):
        found = call(X[:batch], IDS[:batch])
        assert_close(found, jax.jit(f)(X[:batch], IDS[:batch]), FORWARD["float32"])


def test_blockwise_declines_a_symbolic_length():
    with pytest.raises(NotImplementedError, match=r"a length is symbolic. Use 'dense'"):
        exported(lambda x, ids: attend(x, x, x, "blockwise"), "b, t, 4, 8")


@masks.relation
def not_far(q, k, *, factor):
    factor = jnp.asarray(factor)  # of the type that it has come in
    dtype = factor.dtype if jnp.issubdtype(factor.dtype, jnp.floating) else jnp.int32
    factor = factor.astype(dtype)
    return q.positions.astype(dtype) * factor >= k.positions.astype(dtype) * factor


@pytest.mark.parametrize(
    ("numbers", "normalizer"),
    [
        ((2**20, 2.0**20), Softmax()),
        ((2**20, 2.0**20), normalizers.ReLU(4)),
        ((1, True), Softmax()),
        ((1.0, True), Softmax()),
    ],
)
def test_equal_numbers_of_other_types_are_other_programs(numbers, normalizer):
    """2²⁰ · 2048 overflows an int32 and no float32: each program is right for its type."""
    x = jnp.ones((1, 2, 1, 1))
    coords = Coords(jnp.array([2046, 2049]))

    def run(factor, clear):
        if clear:
            jax.clear_caches()
        return dot_product_attention(
            x,
            x,
            jnp.array([1.0, 2.0]).reshape(x.shape),
            mask=not_far(factor=factor),
            normalizer=normalizer,
            query_coords=coords,
            key_coords=coords,
        )

    alone = [run(number, clear=True) for number in numbers]
    both = [run(number, clear=False) for number in numbers]
    chex.assert_trees_all_equal(alone, both)


def test_masks_of_known_numbers_compare_by_value():
    assert masks.Window(3) & masks.Causal() == masks.Window(3) & masks.Causal()
    assert hash(not_far(factor=2)) == hash(not_far(factor=2))
    assert not_far(factor=2) != not_far(factor=2.0)
    assert not_far(factor=0.0) != not_far(factor=-0.0)  # as divisors of 1 they are ∞ and −∞
    assert masks.Window(3) != masks.Window(4)
    assert masks.Window(3) != masks.Causal()
    assert Softmax() == Softmax()
    array = masks.Dense(jnp.ones((4, 4), bool))
    assert array == array
    assert array != masks.Dense(jnp.ones((4, 4), bool))


def test_a_mask_as_static_argument_compiles_once():
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def f(x, mask):
        return dot_product_attention(x, x, x, mask=mask)

    jitted = jax.jit(f, static_argnums=1)
    for _ in range(3):
        jitted(X, masks.Causal() & masks.Window(5))
