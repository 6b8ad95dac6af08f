"""Eager calls compile once for each structure, though masks and modifiers are made anew."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Coords, Dropout, Sigmoid, Softmax, dot_product_attention, masks, scores
from flax_attn.normalizers import Entmax, ReLU, TopK
from tests.runs import some_by_default
from tests.small_blocks import IMPLEMENTATIONS

T, N, D = 42, 4, 8
X = np.random.default_rng(0).normal(size=(1, T, N, D)).astype(np.float32)
NORMALIZERS = {
    "Softmax": Softmax,
    "a sink": lambda: Softmax(jnp.zeros(N)),
    "Sigmoid": lambda: Sigmoid(-1.0),
    "ReLU": lambda: ReLU(T),
    "Entmax": lambda: Entmax(2.0),
    "TopK": lambda: TopK(3),
}


@masks.relation
def near(q, k, *, radius, factor):
    return abs(q.positions - k.positions) * factor <= radius


@scores.score_mod
def wave(s, q, k, head_ids):
    return s + jnp.sin(s)


def make_coords():
    coords = Coords.grid(6, 7).with_features(
        segment_ids=jnp.arange(T) // 20,
        valid=jnp.arange(T) < 40,
        prefix=jnp.full(T, 3),
        is_global=jnp.arange(T) < 2,
        image=jnp.arange(T) // 30 - 1,
        lower=jnp.arange(T),
        upper=jnp.arange(T) + 9,
        enter=jnp.arange(T),
        leave=jnp.full(T, T),
    )
    return {"query_coords": coords, "key_coords": coords}


def make_mask():
    """One of every kind, made anew."""
    whole = [masks.Full(), ~masks.Empty(), masks.Causal(), masks.Padding(), masks.SameSegment()]
    local = [
        masks.Window(5, 2),
        masks.Window.last_n(4),
        masks.Dilated(9, 3),
        masks.Chunked(8),
        masks.Prefix(4),
        masks.Prefix(),
        masks.Strided(6),
        masks.Strided(6, fixed=True, summary=2),
        masks.GlobalTokens(),
        masks.Tree(),
        masks.Overlay(),
        masks.Interval(),
        masks.Neighborhood((6, 7), 3),
        masks.Selected(jnp.zeros((1, 1, 6, 2), jnp.int32), 8),
        masks.Dense(jnp.ones((T, T), bool)),
        near(radius=9, factor=2),
    ]
    result = masks.Full()
    for mask in whole:
        result = result & mask
    some = masks.Empty()
    for mask in local:
        some = some | mask
    return result & some ^ masks.Empty()


def make_score_mod():
    parts = [
        scores.Scale(0.5),
        scores.Temperature(8, 0.1),
        scores.SoftCap(9.0),
        scores.ALiBi.for_heads(N),
        scores.T5Bias(jnp.zeros((12, N))),
        scores.RelativeBias(jnp.zeros((9, N))),
        scores.RelativeBias2D(jnp.zeros((143, N)), (6, 7)),
        scores.DistanceBias(jnp.ones(N), ("row", "col")),
        scores.Bias(jnp.zeros((T, T))),
        wave,
    ]
    result = parts[0]
    for part in parts[1:]:
        result = result >> part
    return result


@contextlib.contextmanager
def compilations():
    """The number of programs that are compiled meanwhile, as a list that grows."""
    found = []

    def note(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def attend(x, implementation):
    """With masks, modifiers and a normalizer made anew."""
    return dot_product_attention(
        x,
        x,
        x,
        mask=make_mask(),
        score_mod=make_score_mod(),
        normalizer=NORMALIZERS["a sink"](),
        dropout=Dropout(0.2, jax.random.key(1)),
        implementation=implementation,
        **make_coords(),
    )


@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_a_repeated_call_compiles_nothing(implementation):
    attend(X, implementation)
    with compilations() as found:
        attend(X, implementation)
    assert not found


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_repeated_call_with_a_new_normalizer_compiles_nothing(name):
    dot_product_attention(X, X, X, normalizer=NORMALIZERS[name]())
    with compilations() as found:
        dot_product_attention(X, X, X, normalizer=NORMALIZERS[name]())
    assert not found


@pytest.mark.parametrize("implementation", some_by_default(IMPLEMENTATIONS, "blockwise"))
def test_a_repeated_gradient_compiles_nothing(implementation):
    def gradient():
        return jax.grad(lambda x: jnp.sum(attend(x, implementation)))(X)

    gradient()
    with compilations() as found:
        gradient()
    assert not found


def test_another_structure_compiles():
    """So that the count counts."""
    dot_product_attention(X, X, X, mask=masks.Window(3))
    with compilations() as found:
        dot_product_attention(X, X, X, mask=masks.Window(4))
    assert len(found) == 1


def test_the_blocks_of_a_constant_mask_are_found_at_run_time():
    """XLA would otherwise reduce the mask while it compiles: minutes for long sequences."""
    length = 1024
    mask = masks.Dense(np.random.default_rng(0).random((length, length)) < 0.5)
    x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    attention = jax.jit(lambda x: dot_product_attention(x, x, x, mask=mask))
    shape = f"tensor<1x1x{length}x{length}xi1>"
    barriers = [
        line for line in attention.lower(x).as_text().splitlines() if "optimization_barrier" in line
    ]
    assert any(shape in line for line in barriers)
