"""Positional encodings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import positions
from tests.tolerances import FORWARD, assert_close


def oracle(places, features, base):
    encoding = np.zeros((*np.shape(places), features))
    for i in range(features // 2):
        angle = np.asarray(places, np.float64) / base ** (2 * i / features)
        encoding[..., 2 * i], encoding[..., 2 * i + 1] = np.sin(angle), np.cos(angle)
    return encoding


@pytest.mark.parametrize("features", [2, 6, 64])
@pytest.mark.parametrize("base", [10_000.0, 100.0])
def test_sinusoids_equal_the_paper(features, base, x64):
    places = np.array([[0, 1, 5], [7, 1000, -3]])
    expected = oracle(places, features, base)
    actual = positions.sinusoidal(jnp.asarray(places, jnp.float64), features, base=base)
    assert_close(actual, expected, FORWARD["float64"] * 100)  # angles of up to 1000 radians
    halves = positions.sinusoidal(
        jnp.asarray(places, jnp.float64), features, base=base, layout="half"
    )
    swapped = np.concatenate([expected[..., 0::2], expected[..., 1::2]], axis=-1)
    assert_close(halves, swapped, FORWARD["float64"] * 100)


def test_a_shift_is_one_linear_map_for_all_positions():
    features, shift = 16, 5
    rotation = np.zeros((features, features))
    for i in range(features // 2):
        angle = shift / 10_000 ** (2 * i / features)
        block = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        rotation[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    before = positions.sinusoidal(jnp.arange(20), features)
    after = positions.sinusoidal(jnp.arange(20) + shift, features)
    assert_close(np.asarray(before) @ rotation, after, 1e-5)


def test_integers_floats_and_dtypes():
    chex.assert_type(positions.sinusoidal(jnp.arange(3), 4), jnp.float32)
    chex.assert_type(positions.sinusoidal(jnp.arange(3), 4, dtype=jnp.bfloat16), jnp.bfloat16)
    half = positions.sinusoidal(jnp.array([0.5], jnp.bfloat16), 2)
    chex.assert_trees_all_close(half, np.array([[np.sin(0.5), np.cos(0.5)]]))
    chex.assert_shape(positions.sinusoidal(jnp.int32(3), 4), (4,))


def test_learned_positions_are_rows():
    table = jnp.arange(12.0).reshape(4, 3)
    chex.assert_trees_all_equal(
        positions.learned(jnp.array([[3, 0]]), table), table[jnp.array([[3, 0]])]
    )
    gradient = jax.grad(lambda t: jnp.sum(positions.learned(jnp.array([1, 1]), t)))(table)
    chex.assert_trees_all_equal(gradient, np.array([0, 2, 0, 0.0])[:, None] * np.ones(3))


@pytest.mark.parametrize("place", [4, -1])
def test_positions_outside_the_table_never_pass_for_others(place):
    table = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"0 ... P - 1 = 3"):
        positions.learned(jnp.array([0, place]), table)
    traced = jax.jit(positions.learned)(jnp.array([0, place]), table)
    assert np.isnan(traced[1]).all()
    assert not np.isnan(traced[0]).any()
