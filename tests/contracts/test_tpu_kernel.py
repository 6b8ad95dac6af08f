"""The Pallas TPU kernel, interpreted: masks × score modifiers × normalisers, by their formulas.

The cells are those of `test_implementations`, for more tokens: 2 × 2 blocks of 128. A modifier that
is chosen by data cannot be staged, so each has a program of its own; the mask is data.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import Dropout, dot_product_attention, masks, scores
from flax_attn.attention import PallasTPU
from flax_attn.normalizers import Entmax, TopK
from tests.contracts import test_implementations as cells
from tests.oracles import scores as score_oracle
from tests.runs import long, some_by_default
from tests.tolerances import GRADIENT, assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:jax")  # of Pallas

KERNEL = PallasTPU(block_query=128, block_key=128, interpret=True)
B, T, S, N = cells.B, 150, 170, cells.N

# What no tile can compute, with the reason.
GATHER = r"a tile cannot compute the mask or a score modifier: \w+ of pairs of tokens"
NO_MASK = {"Selected": GATHER}
NO_MODIFIER = {
    "RelativeBias2D": GATHER,
    "T5Bias": r"T5Bias looks a bias up by distance.*Leave out query_coords and key_coords",
}
MODIFIERS = [name for name in cells.MODIFIERS if name not in NO_MODIFIER]
CACHED = (cells.tokens, cells.seen, cells.kept)


@pytest.fixture
def more_tokens(monkeypatch):
    """The cells for T queries and S keys."""
    monkeypatch.setattr(cells, "T", T)
    monkeypatch.setattr(cells, "S", S)
    longer = {"values": cells.draw(B, 1, T, S), "row": cells.draw(N, 1, S)}
    monkeypatch.setattr(cells, "LEAVES", cells.LEAVES | longer)
    array = cells.pick(B, N, T, S, share=0.5)
    dense = masks.Dense(jnp.asarray(array)), lambda q, k: array
    monkeypatch.setitem(cells.MASKS, "an array", dense)
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


def by_kernel(x, data, modifier, normalizer):
    """Output and LSE of any mask that can be staged."""
    each = [
        cells.number(chosen=data.mask, number=i) & mask
        for i, (name, (mask, _)) in enumerate(cells.MASKS.items())
        if name not in NO_MASK
    ]
    has_lse = normalizer.startswith("Softmax")
    result = dot_product_attention(
        x["query"],
        x["key"],
        x["value"],
        mask=functools.reduce(operator.or_, each),
        scale=x["scale"],
        score_mod=cells.MODIFIERS[modifier][0](x),
        normalizer=cells.NORMALIZERS[normalizer][0](x),
        dropout=Dropout(data.rate, jax.random.key(5)),
        query_coords=cells.as_coords(cells.fields_of(x, data.query, "query")),
        key_coords=cells.as_coords(cells.fields_of(x, data.key, "key")),
        implementation=KERNEL,
        return_residual=has_lse,
    )
    return result if has_lse else (result, jnp.zeros(x["query"].shape[:-1], result.dtype))


@functools.partial(jax.jit, static_argnums=(4, 5))
def kernel_derivatives(x, dx, ct, data, *names):
    return cells.derivatives(lambda x: by_kernel(x, data, *names), x, dx, ct)


def narrow(tree):
    """Floats as float32."""
    is_wide = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: np.asarray(x, np.float32 if is_wide(x) else None), tree)


def check(mask, modifier, layout, rate, normalizer):
    with jax.enable_x64(True):
        x = jax.tree.map(jnp.asarray, cells.leaves_of(layout, normalizer))
        x = jax.tree.map(lambda v: v.astype(np.float32).astype(np.float64), x)
        dx = {n: jnp.asarray(cells.draw(*v.shape, seed=9)) for n, v in x.items()}
        ct = cells.draw(B, T, N, cells.DV, seed=20), cells.draw(B, T, N, seed=21)
        data = cells.data_of(mask, modifier, layout, rate)
        given = x, dx, tuple(map(jnp.asarray, ct)), data
        _, expected = cells.formula_derivatives(*given, normalizer)
    actual = kernel_derivatives(*narrow(given), modifier, normalizer)
    compare(actual, expected, f"{mask}, {modifier}, {layout}, {rate}")


def compare(actual, expected, message):
    """Gradients of numbers, and of one per head, are sums over all rows of scores.

    The rounding errors of R rows add up to √R times that of one, and the rows may cancel to the
    size of one.
    """
    *values, gradients = actual
    *expected_values, expected_gradients = expected
    numbers = {n for n, x in gradients.items() if x.ndim <= 1}
    arrays, formulas = (
        {n: x for n, x in found.items() if n not in numbers}
        for found in (gradients, expected_gradients)
    )
    cells.compare((*values, arrays), (*expected_values, formulas), "float32", message)
    for n in numbers:
        tolerance = GRADIENT["float32"] * (B * T * N) ** 0.5
        assert_close(gradients[n], expected_gradients[n], tolerance, f"{message}: {n}")


def cells_of(modifier):
    """Every mask with a modifier, and some layout and dropout rate."""
    return [
        (mask, layout, rate)
        for mask, of, _, layout, rate in cells.CELLS
        if of == modifier and mask not in NO_MASK
    ]


@pytest.mark.parametrize("modifier", some_by_default(MODIFIERS, "a pipe"))
def test_softmax_with_any_mask_and_modifier(modifier, more_tokens):
    for mask, layout, rate in cells_of(modifier):
        check(mask, modifier, layout, rate, "Softmax")


def on_tokens(mask, modifier, implementation):
    """Attention of the tokens of a layout."""
    x = narrow(cells.leaves_of("in_order", "Softmax"))
    data = narrow(cells.data_of(mask, modifier, "in_order", 0.0))
    return dot_product_attention(
        x["query"],
        x["key"],
        x["value"],
        mask=cells.MASKS[mask][0],
        score_mod=cells.MODIFIERS[modifier][0](x),
        query_coords=cells.as_coords(cells.fields_of(x, data.query, "query")),
        key_coords=cells.as_coords(cells.fields_of(x, data.key, "key")),
        implementation=implementation,
    )


@pytest.mark.parametrize("name", [*NO_MASK, *NO_MODIFIER])
def test_what_cannot_be_staged_is_declined_with_the_reason(name):
    cell = ("Causal", name) if name in NO_MODIFIER else (name, "none")
    with pytest.raises(NotImplementedError, match=(NO_MASK | NO_MODIFIER)[name]):
        on_tokens(*cell, KERNEL)
    assert np.isfinite(on_tokens(*cell, "dense")).all()


@pytest.mark.parametrize("normalizer", [Entmax(1.5), TopK(3)], ids=repr)
def test_a_normaliser_of_whole_rows_is_declined(normalizer):
    q = jnp.zeros((1, T, 2, 8))
    with pytest.raises(NotImplementedError, match="needs whole rows of scores"):
        dot_product_attention(q, q, q, normalizer=normalizer, implementation=KERNEL)


# ---- tables, which take tokens in order


def by_table(name, x, implementation):
    table = {
        "T5Bias": lambda: scores.T5Bias(x["table"], max_distance=90),
        "RelativeBias": lambda: scores.RelativeBias(x["table"][:11]),
    }[name]()
    return dot_product_attention(
        x["query"],
        x["key"],
        x["value"],
        score_mod=table >> scores.SoftCap(x["cap"]),
        implementation=implementation,
        return_residual=True,
    )


def by_table_formula(name, x):
    rule, settings, table = {
        "T5Bias": (score_oracle.t5, {"max_distance": 90, "bidirectional": True}, x["table"]),
        "RelativeBias": (score_oracle.relative, {}, x["table"][:11]),
    }[name]
    # The row of the table of each distance, by the oracle on a table that counts its rows.
    count, keys = np.arange(len(table))[:, None], [{"positions": j} for j in range(S)]
    rows = [
        [int(rule(0, {"positions": i}, k, {"h": 0}, count, **settings)) for k in keys]
        for i in range(T)
    ]
    bias = jnp.moveaxis(table[np.array(rows)], -1, 0)
    key = jnp.repeat(x["key"], N // cells.K, axis=2)
    s = jnp.einsum("btnd,bsnd->bnts", x["query"], key) / cells.D**0.5 + bias[None]
    s = x["cap"] * jnp.tanh(s / x["cap"])
    return cells.attend(s, x["value"], True, True, jnp.zeros(()), x, "Softmax")


@pytest.mark.parametrize("name", some_by_default(["T5Bias", "RelativeBias"], "T5Bias"))
def test_a_table_with_tokens_in_order(name, more_tokens):
    with jax.enable_x64(True):
        x = jax.tree.map(jnp.asarray, cells.leaves_of("in_order", "Softmax"))
        x = {n: x[n].astype(np.float32) for n in ("query", "key", "value", "table", "cap")}
        x = {n: v.astype(np.float64) for n, v in x.items()}
        dx = {n: jnp.asarray(cells.draw(*v.shape, seed=9)) for n, v in x.items()}
        ct = cells.draw(B, T, N, cells.DV, seed=20), cells.draw(B, T, N, seed=21)
        given = x, dx, tuple(map(jnp.asarray, ct))
        formula = functools.partial(cells.derivatives, functools.partial(by_table_formula, name))
        expected = jax.jit(formula)(*given)
    kernel = lambda x: by_table(name, x, KERNEL)
    actual = jax.jit(functools.partial(cells.derivatives, kernel))(*narrow(given))
    compare(actual, expected, name)


@long
@pytest.mark.parametrize("modifier", ["none", "a pipe"])
@pytest.mark.parametrize("normalizer", [x for x in cells.NORMALIZERS if x != "Softmax"])
def test_another_normaliser(normalizer, modifier, more_tokens):
    for mask, layout, rate in cells_of(modifier)[::3]:
        check(mask, modifier, layout, rate, normalizer)
