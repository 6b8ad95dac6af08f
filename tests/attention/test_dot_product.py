"""`dot_product_attention` against its oracle, jax.nn and its laws."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_attn
from flax_attn import (
    Coords,
    Dropout,
    Softmax,
    dot_product_attention,
    scaled_dot_product_attention,
)
from tests.compilation import AS_USERS
from tests.oracles import attention as oracles
from tests.runs import some_by_default
from tests.small_blocks import IMPLEMENTATIONS
from tests.tolerances import FINITE_DIFFERENCE, FORWARD, GRADIENT, assert_close

# T ≠ S without coordinates, as in jax.nn.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_causal and local_window_size count")
B, T, S, N, K, D, DV = 2, 5, 7, 4, 2, 8, 6


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def problem(dtype=np.float64, t=T, s=S, n=N, k=K, d=D, dv=DV, b=B):
    arrays = draw(b, t, n, d), draw(b, s, k, d, seed=1), draw(b, s, k, dv, seed=2)
    return tuple(jnp.asarray(a, dtype) for a in arrays)


def random_mask(*shape, share=0.6):
    return np.random.default_rng(list(shape)).random(shape) < share


# Of masks and biases: each axis given or 1, or left out.
SHAPES = [*itertools.product((1, B), (1, N), (1, T), (1, S))]
SHAPES += [(N, T, S), (1, T, S), (T, S), (S,), ()]
SOME = [(B, N, T, S), (B, 1, 1, S), (1, N, T, 1), (N, T, S), (S,), ()]


def options():
    """One of everything, by name."""
    lengths = {
        "query_seq_lengths": np.array([3, 5], np.int32),
        "key_value_seq_lengths": np.array([7, 2], np.int32),
    }
    masked = {
        "plain": {},
        "scale": {"scale": 0.3},
        "causal": {"is_causal": True},
        "lengths": lengths,
        "window": {"local_window_size": (1, 2)},
        "symmetric window": {"local_window_size": 1},
        "open window": {"local_window_size": (2, None)},
        "sink": {"sink": draw(N, seed=5)},
        "one sink": {"sink": np.float64(0.5)},
        "everything": {
            "bias": draw(1, N, T, S),
            "mask": random_mask(B, 1, T, S),
            "scale": 0.7,
            "is_causal": True,
            "local_window_size": (3, 1),
            "sink": draw(N, seed=5),
            **lengths,
        },
    }
    masked |= {f"mask {shape}": {"mask": random_mask(*shape)} for shape in SHAPES}
    masked |= {f"bias {shape}": {"bias": draw(*shape, seed=9)} for shape in SHAPES}
    return masked


def arguments(option, dtype):
    """Arguments of the function for an option of the oracle."""
    option = dict(option)
    given = {}
    if "sink" in option:
        given["normalizer"] = Softmax(jnp.asarray(option.pop("sink"), dtype))
    for name, value in option.items():
        if isinstance(value, np.ndarray) and name == "bias":
            value = jnp.asarray(value, dtype)
        elif isinstance(value, np.ndarray):
            value = jnp.asarray(value)
        given[name] = value
    return given


def in_default_runs(name):
    return name.split(" ")[0] not in ("mask", "bias") or name.endswith(tuple(map(str, SOME)))


@pytest.mark.parametrize("name", some_by_default(options(), *filter(in_default_runs, options())))
def test_output_and_lse_equal_the_oracle_in_float64(name, x64):
    option = options()[name]
    q, k, v = problem()
    expected, expected_lse, expected_weights = oracles.dot_product_attention(q, k, v, **option)
    given = arguments(option, jnp.float64)

    @jax.jit
    def run(q, k, v):
        result = dot_product_attention(q, k, v, **given, return_residual=True)
        return *result, flax_attn.attention_weights(q, k, **given)

    output, lse, weights = run(q, k, v)
    chex.assert_type([output, lse], jnp.float64)
    assert_close(output, expected, FORWARD["float64"])
    assert_close(lse, expected_lse, FORWARD["float64"])
    assert_close(weights, expected_weights, FORWARD["float64"])
    chex.assert_trees_all_equal(np.asarray(weights) == 0, expected_weights == 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "causal", "lengths", "everything"])
def test_low_precision_is_near_the_oracle(name, dtype):
    option = options()[name]
    q, k, v = problem(dtype)
    wide = (np.asarray(a, np.float64) for a in (q, k, v))
    expected, expected_lse, _ = oracles.dot_product_attention(*wide, **option)
    output, lse = dot_product_attention(
        q, k, v, **arguments(option, jnp.float32), return_residual=True
    )
    chex.assert_type([output, lse], [dtype, jnp.float32])
    assert_close(output, expected, FORWARD[dtype])
    assert_close(lse, expected_lse, FORWARD["float32"])


@pytest.mark.parametrize(
    ("heads", "lengths"),
    [((4, 4), (1, 1)), ((4, 2), (1, 9)), ((4, 1), (9, 1)), ((6, 3), (13, 11)), ((1, 1), (13, 11))],
)
def test_any_heads_and_lengths(heads, lengths, x64):
    q, k, v = problem(t=lengths[0], s=lengths[1], n=heads[0], k=heads[1], d=3, dv=5, b=1)
    expected, _, _ = oracles.dot_product_attention(q, k, v)
    assert_close(dot_product_attention(q, k, v), expected, FORWARD["float64"])


@pytest.mark.parametrize(
    "name",
    some_by_default(["plain", "everything", "causal", "lengths", "window"], "plain", "everything"),
)
def test_all_gradients_equal_differences_of_the_oracle(name, x64):
    option = {"bias": draw(1, N, T, S, seed=7), "sink": draw(N, seed=8)} | options()[name]
    static = {key: option[key] for key in option if key not in ("bias", "sink", "scale")}
    leaves = {
        **dict(zip(("query", "key", "value"), map(np.asarray, problem()), strict=True)),
        "bias": option["bias"],
        "sink": option["sink"],
        "scale": np.float64(option.get("scale", 0.4)),
    }
    ct_output, ct_lse = draw(B, T, N, DV, seed=11), draw(B, T, N, seed=12)

    def oracle_loss(leaves):
        output, lse, _ = oracles.dot_product_attention(**leaves, **static)
        return np.sum(ct_output * output) + np.sum(ct_lse * np.where(np.isinf(lse), 0, lse))

    def loss(leaves):
        leaves = dict(leaves)
        given = arguments(static, jnp.float64)
        output, lse = dot_product_attention(
            **{name: leaves[name] for name in ("query", "key", "value", "bias", "scale")},
            **given,
            normalizer=Softmax(leaves["sink"]),
            return_residual=True,
        )
        return jnp.sum(ct_output * output) + jnp.sum(ct_lse * jnp.where(jnp.isinf(lse), 0, lse))

    gradients = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, leaves))
    for leaf, value in leaves.items():
        direction = np.asarray(draw(*np.shape(value), seed=13))
        epsilon = 1e-5
        shift = {e: {**leaves, leaf: value + e * direction} for e in (epsilon, -epsilon)}
        expected = (oracle_loss(shift[epsilon]) - oracle_loss(shift[-epsilon])) / (2 * epsilon)
        actual = np.sum(np.asarray(gradients[leaf]) * direction)
        assert abs(actual - expected) <= 100 * FINITE_DIFFERENCE * max(1, abs(expected)), leaf


JAX_NN = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (2, 1)},
    "window 3": {"local_window_size": 3},
    "scale": {"scale": 0.2},
    "bias": {"bias": jnp.asarray(draw(B, N, T, S, dtype=np.float32))},
    "mask": {"mask": jnp.asarray(random_mask(B, N, T, S, share=0.9)).at[..., 0].set(True)},
}


@pytest.mark.parametrize("name", JAX_NN)
def test_it_replaces_jax_nn(name):
    q, k, v = problem(np.float32, dv=D)

    def output_and_gradients(attend, *by_position, **by_name):
        def loss(q, k, v):
            output = attend(q, k, v, *by_position, **by_name)
            return jnp.sum(jnp.sin(output)), output

        gradients, output = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return output, gradients

    output, gradients = output_and_gradients(jax.nn.dot_product_attention, **JAX_NN[name])
    by_position = [JAX_NN[name].get(argument) for argument in ("bias", "mask")]
    by_name = {x: JAX_NN[name][x] for x in JAX_NN[name] if x not in ("bias", "mask")}
    actual, actual_gradients = output_and_gradients(dot_product_attention, *by_position, **by_name)
    assert_close(actual, output, FORWARD["float32"])
    for one, other in zip(actual_gradients, gradients, strict=True):
        assert_close(one, other, GRADIENT["float32"])
    by_name = dot_product_attention(q, k, v, **JAX_NN[name])
    assert_close(by_name, output, FORWARD["float32"])


def test_it_replaces_jax_nn_without_a_batch_and_with_lengths():
    q, k, v = (a[0] for a in problem(np.float32, dv=D))
    lengths = {"key_value_seq_lengths": jnp.array([4], jnp.int32)}
    expected, residual = jax.nn.dot_product_attention(q, k, v, **lengths, return_residual=True)
    actual, lse = dot_product_attention(q, k, v, **lengths, return_residual=True)
    assert_close(actual, expected, FORWARD["float32"])
    assert_close(lse, residual, FORWARD["float32"])
    q, k, v = problem(np.float32, dv=D)
    lengths = {name: jnp.array([3, 4], jnp.int32) for name in ("query_seq_lengths",)}
    expected = jax.nn.dot_product_attention(q, k, v, **lengths)
    assert_close(dot_product_attention(q, k, v, **lengths), expected, FORWARD["float32"])


def test_lengths_and_the_validity_of_coordinates_both_hide(x64):
    q, k, v = problem()
    valid = random_mask(B, S)
    lengths = {"key_value_seq_lengths": np.array([6, 3], np.int32)}
    expected, expected_lse, _ = oracles.dot_product_attention(
        q, k, v, mask=valid[:, None, None], **lengths
    )
    output, lse = dot_product_attention(
        q, k, v, key_coords=Coords(np.arange(S), valid=valid), **lengths, return_residual=True
    )
    assert_close(output, expected, FORWARD["float64"])
    assert_close(lse, expected_lse, FORWARD["float64"])


def test_by_hand_two_keys_share_by_their_scores():
    q, k = jnp.array([[[2.0]]]), jnp.array([[[0.0]], [[np.log(3.0) / 2]]])
    v = jnp.array([[[1.0]], [[5.0]]])
    output, lse = dot_product_attention(q, k, v, scale=1.0, return_residual=True)
    chex.assert_trees_all_close(output, np.full((1, 1, 1), 0.25 * 1 + 0.75 * 5, np.float32))
    chex.assert_trees_all_close(lse, np.full((1, 1), np.log(4.0), np.float32))
    output = dot_product_attention(q, k, v, scale=1.0, normalizer=Softmax(jnp.log(jnp.array(4.0))))
    chex.assert_trees_all_close(output, np.full((1, 1, 1), (1 + 3 * 5) / 8, np.float32))


@pytest.mark.parametrize("sink", [None, 0.3])
@pytest.mark.parametrize("how", ["mask", "bias", "lengths", "both lengths"])
def test_a_fully_masked_row_gives_zero_and_finite_gradients(how, sink):
    q, k, v = problem(np.float32)
    given = {
        "mask": {"mask": jnp.ones((B, 1, T, S), bool).at[0, 0, 2].set(False)},
        "bias": {"bias": jnp.zeros((B, 1, T, S)).at[0, 0, 2].set(-jnp.inf)},
        "lengths": {"query_seq_lengths": jnp.array([2, T])},
        "both lengths": {
            "query_seq_lengths": jnp.array([2, T]),
            "key_value_seq_lengths": jnp.array([S, 0]),
        },
    }[how]
    given["normalizer"] = Softmax(None if sink is None else jnp.asarray(sink))

    def loss(q, k, v, normalizer):
        arguments = {**given, "normalizer": normalizer}
        output, lse = dot_product_attention(q, k, v, **arguments, return_residual=True)
        return jnp.sum(output**2) + jnp.sum(jnp.where(jnp.isinf(lse), 0, lse)), (output, lse)

    gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))
    gradients, (output, lse) = gradient(q, k, v, given["normalizer"])
    assert not np.asarray(output[0, 2]).any()
    chex.assert_trees_all_close(lse[0, 2], np.full(N, -np.inf if sink is None else sink))
    assert not np.asarray(gradients[0][0, 2]).any()
    chex.assert_tree_all_finite(gradients)


FIRST = np.arange(7) < 4
POISON = {
    "padding": {"key_value_seq_lengths": jnp.array([4, 4])},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (0, 0)},
    "mask": {"mask": jnp.asarray(FIRST)},
    "bias": {"bias": jnp.asarray(np.where(FIRST, 0, -np.inf), jnp.float32)},
    "heads": {"mask": jnp.asarray(np.broadcast_to(FIRST, (4, 1, 7)))},
    "documents": {"mask": jnp.asarray(FIRST[:, None] == FIRST)},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", POISON)
def test_nothing_behind_a_mask_leaks_in_value_or_gradient(name, dtype):
    """Keys and values from 4 on are bad; queries before 4 do not see them."""
    clean = problem(dtype, t=7)

    @jax.jit
    def run(q, k, v, scale):
        def loss(q, k, v, scale):
            output, lse = dot_product_attention(
                q, k, v, **POISON[name], scale=scale, return_residual=True
            )
            return jnp.sum(jnp.sin(output[:, :4].astype(jnp.float32))) + jnp.sum(lse[:, :4])

        return jax.value_and_grad(loss, (0, 1, 2, 3))(q, k, v, scale)

    scale = jnp.float32(0.3)
    expected = run(*clean, scale)
    chex.assert_tree_all_finite(expected)
    some_see_them = name in ("causal", "window", "documents")
    # In the products of those that see it a finite number overflows, so there nobody may.
    for bad in (np.nan, np.inf, -np.inf, *(() if some_see_them else (3e38,))):
        q = clean[0].at[:, 4:].set(bad) if some_see_them else clean[0]
        k, v = (a.at[:, 4:].set(bad) for a in clean[1:])
        chex.assert_trees_all_equal(run(q, k, v, scale), expected)


def test_what_is_visible_and_not_finite_shows():
    q, k, v = problem(np.float32, t=7)
    for index, arrays in enumerate(itertools.repeat((q, k, v), 3)):
        arrays = list(arrays)
        arrays[index] = arrays[index].at[:, 4, 0, 0].set(jnp.nan)
        output = dot_product_attention(*arrays, is_causal=True)
        heads = slice(0, 1) if index == 0 else slice(0, N // K)
        rows = slice(4, 5) if index == 0 else slice(4, None)
        assert np.isnan(output[:, rows, heads]).all()
        assert not np.isnan(output[:, :4]).any()
        assert not np.isnan(output[:, :, heads.stop :]).any()


def test_a_value_that_is_not_finite_leaves_the_lse_alone():
    q, k, v = problem(np.float32)
    bad = v.at[:, 2, 0, 0].set(jnp.nan)
    mask = jnp.asarray(random_mask(B, 1, T, S))
    _, expected = dot_product_attention(q, k, v, mask=mask, return_residual=True)
    output, lse = dot_product_attention(q, k, bad, mask=mask, return_residual=True)
    assert_close(lse, expected, 0)
    chex.assert_trees_all_equal(np.isnan(output[:, :, 0, 0]), mask[:, 0, :, 2])
    chex.assert_trees_all_equal(
        output[:, :, 2:], dot_product_attention(q, k, v, mask=mask)[:, :, 2:]
    )


def test_a_window_open_on_both_sides_hides_nothing():
    q, k, v = problem(np.float32)
    actual = dot_product_attention(q, k, v, local_window_size=(None, None))
    assert_close(actual, dot_product_attention(q, k, v), 0)


@pytest.mark.parametrize("axes", [(0, 5), (0, 5, 5), (2, 0, 5), (2, 5, 0)])
def test_empty_axes_give_empty_or_zero(axes):
    *batch, t, s = axes if len(axes) == 3 else (2, *axes)
    q, k = jnp.ones((*batch, t, 4, 8)), jnp.ones((*batch, s, 2, 8))
    output, lse = dot_product_attention(q, k, k, return_residual=True)
    chex.assert_equal_shape([output, q])
    assert not np.asarray(output).any()
    assert np.isneginf(lse).all()


def test_the_future_does_not_matter_to_causal_attention():
    q, k, v = problem(np.float32, s=T)
    other = [a.at[:, 3:].add(1.0) for a in (q, k, v)]
    before = dot_product_attention(q, k, v, is_causal=True)[:, :3]
    chex.assert_trees_all_equal(before, dot_product_attention(*other, is_causal=True)[:, :3])


def test_large_scores_do_not_overflow():
    q, k, v = problem(np.float32)
    output, lse = dot_product_attention(1e4 * q, 1e4 * k, v, return_residual=True)
    chex.assert_tree_all_finite((output, lse))


def test_leading_axes_are_a_batch():
    arrays = problem(np.float32, b=6)
    expected = dot_product_attention(*arrays, is_causal=True)
    split = [a.reshape(2, 3, *a.shape[1:]) for a in arrays]
    lengths = {"key_value_seq_lengths": jnp.full((2, 3), S)}
    actual = dot_product_attention(*split, is_causal=True, **lengths)
    assert_close(actual.reshape(expected.shape), expected, FORWARD["float32"])
    assert_close(
        dot_product_attention(*(a[0] for a in arrays), is_causal=True),
        expected[0],
        FORWARD["float32"],
    )


def test_vmap_jit_scan_and_remat_compose():
    q, k, v = problem(np.float32, b=3)
    f = functools.partial(dot_product_attention, is_causal=True)
    expected = f(q, k, v)
    assert_close(jax.vmap(f)(q, k, v), expected, FORWARD["float32"])
    assert_close(jax.jit(jax.checkpoint(f))(q, k, v), expected, FORWARD["float32"])
    per_example = jax.vmap(jax.grad(lambda *qkv: jnp.sum(f(*qkv) ** 2)))(q, k, v)
    together = jax.grad(lambda *qkv: jnp.sum(f(*qkv) ** 2))(q, k, v)
    assert_close(per_example, together, GRADIENT["float32"])

    def layer(x, window):  # a window of its own in each layer, traced
        return x + dot_product_attention(x, x, x, local_window_size=(window, 0)), None

    x = q
    windows = jnp.array([1, 3])
    scanned, _ = jax.lax.scan(layer, x, windows)
    for window in (1, 3):
        x, _ = layer(x, window)
    assert_close(scanned, x, FORWARD["float32"])


def test_new_masks_and_lengths_do_not_retrace():
    chex.clear_trace_counter()
    q, k, v = problem(np.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def attend(q, k, v, mask, lengths, normalizer):
        return dot_product_attention(
            q, k, v, mask=mask, key_value_seq_lengths=lengths, normalizer=normalizer
        )

    for seed in range(3):
        mask = jnp.asarray(np.random.default_rng(seed).random((B, 1, T, S)) < 0.5)
        attend(q, k, v, mask, jnp.array([seed, 3]), Softmax(jnp.full(N, float(seed))))


def test_equal_inputs_give_equal_bits():
    q, k, v = problem(np.float32)
    gradient = jax.jit(jax.grad(lambda *qkv: jnp.sum(dot_product_attention(*qkv)), (0, 1, 2)))
    chex.assert_trees_all_equal(gradient(q, k, v), gradient(q, k, v))


def test_the_single_head_form_is_the_same(x64):
    q, k, v = (a[:, :, 0] for a in problem())
    mask, bias = random_mask(B, T, S), jnp.asarray(draw(T, S))
    lengths = jnp.array([3, 7])
    expected, expected_lse, _ = oracles.dot_product_attention(
        *(a[:, :, None] for a in (q, k, v)),
        bias,
        mask[:, None],
        scale=0.5,
        key_value_seq_lengths=lengths,
    )
    output, lse = scaled_dot_product_attention(
        q, k, v, bias, mask, scale=0.5, key_value_seq_lengths=lengths, return_residual=True
    )
    assert_close(output, expected[:, :, 0], FORWARD["float64"])
    assert_close(lse, expected_lse[:, :, 0], FORWARD["float64"])
    heads = [jnp.swapaxes(jnp.asarray(a), 1, 2) for a in problem(n=4, k=4)]
    expected = dot_product_attention(*(jnp.swapaxes(a, 1, 2) for a in heads))
    actual = scaled_dot_product_attention(*heads)  # heads as one more batch axis
    assert_close(jnp.swapaxes(actual, 1, 2), expected, FORWARD["float64"])


def test_a_window_of_the_weights_equals_that_of_all():
    q, k, v = problem(np.float32)
    given = {"mask": jnp.asarray(random_mask(1, N, T, S)), "bias": jnp.asarray(draw(T, 1), "f4")}
    _, lse = dot_product_attention(q, k, v, **given, return_residual=True)
    whole = flax_attn.attention_weights(q, k, **given)
    rows, cols = slice(1, 4), jnp.array([6, 0, 2])
    for known in (None, lse):
        part = flax_attn.attention_weights(q, k, **given, rows=rows, cols=cols, lse=known)
        assert_close(part, whole[..., rows, :][..., cols], FORWARD["float32"])
    assert_close(jnp.einsum("bnts,bskd->btnd", whole[:, :2], v[:, :, :1]),
                 dot_product_attention(q, k, v, **given)[:, :, :2], FORWARD["float32"])  # fmt: skip


def test_dropout_drops_what_its_pattern_says(x64):
    q, k, v = problem()
    dropout = Dropout(0.3, jax.random.key(7))
    keep = dropout.keep((B,), jnp.arange(N), jnp.arange(T), jnp.arange(S))
    expected, expected_lse, _ = oracles.dot_product_attention(q, k, v, keep=keep, rate=0.3)
    output, lse = dot_product_attention(q, k, v, dropout=dropout, return_residual=True)
    assert_close(output, expected, FORWARD["float64"])
    assert_close(lse, expected_lse, FORWARD["float64"])


def test_dropout_keeps_the_mean_and_its_rate():
    keep = Dropout(0.3, jax.random.key(1)).keep(
        (2,), jnp.arange(4), jnp.arange(256), jnp.arange(256)
    )
    share = np.asarray(keep).mean(axis=(2, 3))
    assert np.abs(share - 0.7).max() < 5 * np.sqrt(0.21 / 256**2)  # five standard deviations
    flat = np.asarray(keep, np.float64).reshape(8, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < 0.02
    rows = np.asarray(keep[0, 0], np.float64)
    assert np.abs(np.corrcoef(rows) - np.eye(256)).max() < 0.4


def test_dropout_depends_on_global_numbers_only():
    key = jax.random.key(3)
    heads, rows, cols = jnp.arange(4), jnp.arange(8), jnp.arange(8)
    whole = Dropout(0.5, key).keep((4,), heads, rows, cols)
    part = Dropout(0.5, key, batch_ids=jnp.arange(2, 4)).keep((2,), heads[1:3], rows[5:], cols[2:4])
    chex.assert_trees_all_equal(part, whole[2:, 1:3, 5:, 2:4])
    shared = Dropout(0.5, key, broadcast=True).keep((4,), heads, rows, cols)
    chex.assert_shape(shared, (1, 1, 8, 8))


def test_threefry_is_the_published_cipher():
    """Known answers of the Random123 distribution: zeros, ones and the digits of π."""
    from flax_attn.attention.dropout import threefry2x32

    vectors = [
        ((0x00000000, 0x00000000, 0x00000000, 0x00000000), 0x6B200159),
        ((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), 0x1CB996FC),
        ((0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3), 0xC4923A9C),
    ]
    for words, expected in vectors:
        assert int(threefry2x32(*(jnp.uint32(w) for w in words))[0]) == expected


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_dropout_counts_with_every_generator_and_under_vmap(impl):
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    heads, rows = jnp.arange(4), jnp.arange(8)
    whole = [Dropout(0.5, key).keep((2,), heads, rows, rows) for key in keys]
    part = Dropout(0.5, keys[0]).keep((2,), heads[2:], rows, rows)
    chex.assert_trees_all_equal(part, whole[0][:, 2:])
    together = jax.vmap(lambda key: Dropout(0.5, key).keep((2,), heads, rows, rows))(keys)
    chex.assert_trees_all_equal(together, jnp.stack(whole))
    assert not np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_dropout_takes_both_kinds_of_keys_and_new_ones_do_not_retrace(make_key):
    chex.clear_trace_counter()
    q, k, v = problem(np.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def attend(dropout):
        return dot_product_attention(q, k, v, dropout=dropout)

    first, second = (attend(Dropout(rate, make_key(s))) for s, rate in ((0, 0.1), (1, 0.4)))
    assert not np.allclose(first, second)


def test_precision_reaches_every_dot():
    q, k, v = problem(np.float32)
    f = functools.partial(dot_product_attention, precision="highest")
    for implementation in IMPLEMENTATIONS:
        g = functools.partial(f, implementation=implementation)
        text = jax.jit(jax.grad(lambda *x: jnp.sum(g(*x)))).lower(q, k, v).as_text()
        dots = re.findall(r"stablehlo.dot_general.*", text)
        assert len(dots) >= 4
        assert all("precision = [HIGHEST, HIGHEST]" in dot for dot in dots)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_arrays_of_any_layout_are_arrays(dtype):
    arrays = [np.asarray(a).T.copy().T.astype(dtype) for a in problem(np.float32)]
    expected = dot_product_attention(*map(jnp.asarray, arrays))
    actual = dot_product_attention(*arrays, mask=np.ones((T, S), bool), bias=np.zeros(S))
    assert_close(actual, expected, FORWARD[str(actual.dtype)])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [3e3, 3e5])
def test_weights_of_huge_scores_are_those_of_an_average(implementation, size):
    """LLVM may join the scale with the difference from the peak, whose weight is then not 1."""
    q, k = (jnp.asarray(size * draw(2, 64, 2, 6, seed=seed, dtype=np.float32)) for seed in (0, 1))
    attend = functools.partial(dot_product_attention, implementation=implementation)

    def loss(q, k, v):
        y = attend(q, k, v)
        return jnp.sum(y), y

    gradient = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    compiled = gradient.lower(q, k, jnp.ones_like(q)).compile(compiler_options=AS_USERS)
    gradients, y = compiled(q, k, jnp.ones_like(q))
    chex.assert_trees_all_close(y, jnp.ones_like(y))
    chex.assert_tree_all_finite(gradients)
