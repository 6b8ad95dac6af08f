"""What a token means does not depend on where it is stored: orders, parts, packs, heads, shards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import (
    Coords,
    Dropout,
    Sigmoid,
    Softmax,
    attention,
    dot_product_attention,
    masks,
    scores,
)
from flax_attn.coords import PerHead, unzigzag, zigzag
from tests.runs import long, some_by_default
from tests.small_blocks import IMPLEMENTATIONS, use_small_blocks
from tests.tolerances import GRADIENT, assert_close

B, T, N, K, D = 2, 16, 4, 2, 3
SINK = np.random.default_rng(1).normal(size=N)
NORMALIZERS = {
    "Softmax": lambda: Softmax(),
    "with a sink": lambda: Softmax(jnp.asarray(SINK)),
    "Sigmoid": lambda: Sigmoid(-1.0),
}

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)
blockwise_by_default = pytest.mark.parametrize(
    "implementation", some_by_default(IMPLEMENTATIONS, "blockwise")
)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch, x64):
    use_small_blocks(monkeypatch, 4, 4, 2, 2)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def arrays(t=T, s=T):
    return draw(B, t, N, D), draw(B, s, K, D, seed=1), draw(B, s, K, D, seed=2)


def mask_and_modifier():
    mask = masks.Causal() & (masks.Window(6) | masks.GlobalTokens()) & masks.SameSegment()
    slopes = scores.ALiBi(jnp.asarray([0.3, 0.1, 0.2, 0.05]))
    table = scores.T5Bias(draw(8, N, seed=7), max_distance=9)
    return mask, slopes >> table >> scores.Forget() >> scores.SoftCap(4.0)


def tokens():
    rng = np.random.default_rng(0)
    return Coords(
        jnp.arange(T, dtype=jnp.int32),
        segment_ids=jnp.asarray(np.stack([np.arange(T) // 9, np.zeros(T, int)])),
        valid=jnp.asarray(rng.random((B, T)) < 0.9),
        is_global=jnp.asarray(rng.random((B, T)) < 0.2),
        log_forget=PerHead(-jnp.cumsum(jnp.asarray(rng.random((B, T, N))), axis=1) / 5),
    )


def attend(implementation, normalizer, q, k, v, query_coords, key_coords, **options):
    """Output, and LSE where there is one."""
    mask, score_mod = mask_and_modifier()
    given = {"mask": mask, "score_mod": score_mod, "normalizer": NORMALIZERS[normalizer]()}
    return dot_product_attention(
        q,
        k,
        v,
        query_coords=query_coords,
        key_coords=key_coords,
        implementation=implementation,
        return_residual=normalizer != "Sigmoid",
        **(given | options),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(implementation, normalizer, q, k, v, query_coords, key_coords):
    """The result, dropout included, and the gradients of query, key and value."""

    def loss(q, k, v):
        result = attend(
            implementation,
            normalizer,
            q,
            k,
            v,
            query_coords,
            key_coords,
            dropout=Dropout(0.2, jax.random.key(0)),
        )
        weighed = query_coords.positions.astype(q.dtype).reshape(1, -1, 1)
        parts = [
            jnp.sum(
                jnp.where(jnp.isinf(x), 0, jnp.sin(x))
                * jnp.expand_dims(weighed, (3,) * (x.ndim - 3))
            )
            for x in jax.tree.leaves(result)
        ]
        return sum(parts), result

    gradients, result = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return result, gradients


def assert_same(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(a, e, GRADIENT["float64"])


def take(tree, order):
    return jax.tree.map(lambda x: x[:, order], tree)


@pytest.mark.parametrize("normalizer", some_by_default(NORMALIZERS, "Softmax"))
@blockwise_by_default
def test_keys_have_no_order_and_queries_keep_theirs(implementation, normalizer):
    q, k, v = arrays()
    c = tokens()
    result, (dq, dk, dv) = run(implementation, normalizer, q, k, v, c, c)
    order = np.random.default_rng(3).permutation(T)
    actual = run(implementation, normalizer, q, k[:, order], v[:, order], c, c[order])
    assert_same(actual, (result, (dq, dk[:, order], dv[:, order])))
    actual = run(implementation, normalizer, q[:, order], k, v, c[order], c)
    assert_same(actual, (take(result, order), (dq[:, order], dk, dv)))
    moved = zigzag((q, k, v, c), 4)
    actual = run(implementation, normalizer, *moved, moved[-1])
    assert_same(unzigzag(actual, 4), (result, (dq, dk, dv)))


@long
@every_normalizer
@every_implementation
def test_keys_may_be_cut_anywhere_and_joined(implementation, normalizer):
    q, k, v = arrays()
    c = tokens()
    mask, score_mod = mask_and_modifier()
    given = NORMALIZERS[normalizer]()

    def whole(q, k, v):
        return attend(implementation, normalizer, q, k, v, c, c)

    def joined(q, k, v):
        parts = []
        for start, stop in ((0, 5), (5, 6), (6, T)):
            part = attention.partial(
                q,
                k[:, start:stop],
                v[:, start:stop],
                mask=mask,
                score_mod=score_mod,
                normalizer=given,
                query_coords=c,
                key_coords=c[start:stop],
                implementation=implementation,
            )
            parts.append(part)
        output, lse = attention.finalize(attention.merge(parts), given)
        return output if lse is None else (output, lse)

    def both(f):
        def loss(q, k, v):
            result = f(q, k, v)
            parts = (jnp.where(jnp.isinf(x), 0, jnp.sin(x)) for x in jax.tree.leaves(result))
            return sum(map(jnp.sum, parts)), result

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    assert_same(both(joined), both(whole))


@long
@every_implementation
def test_packed_is_one_by_one(implementation):
    q, k, v = arrays()
    segments = np.repeat([3, 1, 7], [5, 10, 1])
    mask = masks.Causal() & masks.SameSegment()
    score_mod = scores.ALiBi(jnp.asarray(0.3)) >> scores.T5Bias(draw(8, N, seed=7), max_distance=9)
    f = jax.jit(
        functools.partial(
            dot_product_attention,
            score_mod=score_mod,
            normalizer=Softmax(jnp.asarray(SINK)),
            implementation=implementation,
            return_residual=True,
        )
    )
    packed = Coords.from_segments(jnp.asarray(segments), restart=True)
    together = f(q, k, v, mask=mask, query_coords=packed, key_coords=packed)
    for segment in (3, 1, 7):
        (own,) = np.nonzero(segments == segment)
        alone = f(*take((q, k, v), own), mask=masks.Causal())
        assert_same(take(together, own), alone)


@blockwise_by_default
def test_decoding_a_step_is_a_row_of_the_whole(implementation):
    q, k, v = arrays()
    c = Coords.arange(T)
    mask = masks.Causal() & masks.Window(6)
    score_mod = scores.ALiBi(jnp.asarray([0.3, 0.1, 0.2, 0.05])) >> scores.Temperature(4)

    @jax.jit
    def f(q, query_coords):
        return dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            score_mod=score_mod,
            query_coords=query_coords,
            key_coords=c,
            implementation=implementation,
            return_residual=True,
        )

    whole = f(q, c)
    for t in range(T):
        assert_same(f(q[:, t : t + 1], Coords.arange(1, t)), take(whole, slice(t, t + 1)))
    # Several sequences at different steps.
    steps = jnp.array([4, 11])
    rows = jnp.stack([q[b, steps[b]] for b in range(B)])[:, None]
    expected = jax.tree.map(lambda x: jnp.stack([x[b, steps[b]] for b in range(B)])[:, None], whole)
    assert_same(f(rows, Coords.arange(1, steps)), expected)


@long
@pytest.mark.parametrize("normalizer", [Softmax, Sigmoid])
@every_implementation
def test_some_heads_are_those_of_the_whole(implementation, normalizer):
    q, k, v = arrays()
    c = tokens()
    per_head = jnp.asarray(SINK)
    mask = masks.Causal() & masks.Window(jnp.array([3, 8, 1, 20]))
    _, score_mod = mask_and_modifier()

    def f(q, k, v, c, heads, normalizer):
        return dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            score_mod=score_mod,
            normalizer=normalizer,
            dropout=Dropout(0.3, jax.random.key(1)),
            query_coords=c,
            key_coords=c,
            head_ids=heads,
            implementation=implementation,
        )

    whole = f(q, k, v, c, None, normalizer(per_head))
    for heads in ([2, 3], [0, 1]):
        own = slice(heads[0], heads[1] + 1)
        part = c.with_features(log_forget=PerHead(c.features["log_forget"].values[..., own]))
        kv = slice(heads[0] // 2, heads[0] // 2 + 1)
        actual = f(
            q[:, :, own],
            k[:, :, kv],
            v[:, :, kv],
            part,
            jnp.array(heads),
            normalizer(jnp.asarray(SINK[own])),
        )
        assert_same(actual, whole[:, :, own])


@blockwise_by_default
def test_a_constant_added_to_all_scores_changes_only_the_lse(implementation):
    q, k, v = arrays()
    c = tokens()
    mask, _ = mask_and_modifier()

    def f(constant):
        return dot_product_attention(
            q,
            k,
            v,
            jnp.full((1, 1), constant),
            mask,
            query_coords=c,
            key_coords=c,
            implementation=implementation,
            return_residual=True,
        )

    output, lse = f(0.0)
    shifted, lse_shifted = f(2.5)
    assert_same((shifted, lse_shifted), (output, lse + 2.5))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(f(x)[0]))))(2.5)
    assert abs(slope) < 1e-13


@long
def test_dropout_is_the_same_everywhere(monkeypatch):
    q, k, v = arrays()
    c = tokens()

    def f(q, k, v, query_coords, key_coords, implementation, batch_ids=None, head_ids=None):
        dropout = Dropout(0.4, jax.random.key(2), batch_ids=batch_ids)
        return dot_product_attention(
            q,
            k,
            v,
            normalizer=Sigmoid(),
            dropout=dropout,
            query_coords=query_coords,
            key_coords=key_coords,
            head_ids=head_ids,
            implementation=implementation,
        )

    whole = f(q, k, v, c, c, "dense")
    assert not np.allclose(whole, f(q, k, v, c, c[::-1], "dense"))
    for implementation in IMPLEMENTATIONS:
        for blocks in ((16, 16, 1, 2), (5, 3, 2, 1)):
            use_small_blocks(monkeypatch, *blocks)
            assert_same(
                jax.jit(functools.partial(f, implementation=implementation))(q, k, v, c, c), whole
            )
        # A device's part: the second sequence, two of the heads, some queries; keys in two parts.
        own, rows = slice(2, 4), slice(5, 12)
        part = sum(
            f(
                q[1:, rows, own],
                k[1:, keys, 1:],
                v[1:, keys, 1:],
                Coords.arange(7, 5),
                Coords.arange(keys.stop - keys.start, keys.start),
                implementation,
                jnp.array([1]),
                jnp.array([2, 3]),
            )
            for keys in (slice(0, 9), slice(9, 16))
        )
        every = f(q, k, v, Coords.arange(T), Coords.arange(T), implementation)
        assert_same(part, every[1:, rows, own])
