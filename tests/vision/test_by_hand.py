"""One number per mechanism that a person can check."""

import math

import jax.numpy as jnp
import pytest

from flax_attn import maps, vision


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def identity(x):
    return x


# One image of 2×2 places and 2 channels: channel 0 is 1, 2, 3, 6 (mean 3, maximum 6, sum of squared
# deviations 4 + 1 + 0 + 9 = 14), channel 1 is -1 everywhere.
X = jnp.array([[[[1.0, -1.0], [2.0, -1.0]], [[3.0, -1.0], [6.0, -1.0]]]])
REDUCE = maps.dense(jnp.array([[0.5], [1.0]]))  # half of channel 0 and the whole of channel 1
EXPAND = maps.dense(jnp.array([[2.0, -1.0]]))


def test_squeeze_excite():
    # z = (3, -1), hidden = relu(0.5 · 3 - 1) = 0.5, expanded = (1, -0.5)
    y = vision.squeeze_excite(X, REDUCE, EXPAND)
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * sigmoid(1.0), rel=1e-6)
    assert float(y[0, 0, 0, 1]) == pytest.approx(-sigmoid(-0.5), rel=1e-6)


def test_channel_attention():
    # of the maximum (6, -1): hidden = 2, expanded = (4, -2); with the mean's: (5, -2.5)
    y = vision.channel_attention(X, REDUCE, EXPAND)
    assert float(y[0, 1, 0, 0]) == pytest.approx(3 * sigmoid(5.0), rel=1e-6)
    assert float(y[0, 1, 0, 1]) == pytest.approx(-sigmoid(-2.5), rel=1e-6)


def test_spatial_attention():
    # The centre tap reads mean - 2 · maximum: at the last place 2.5 - 12. The tap to its left reads
    # the maximum there: 3.
    kernel = jnp.zeros((3, 3, 2, 1)).at[1, 1, :, 0].set(jnp.array([1.0, -2.0]))
    kernel = kernel.at[1, 0, 1, 0].set(1.0)
    y = vision.spatial_attention(X, maps.conv(kernel))
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * sigmoid(2.5 - 12 + 3), rel=1e-6)


def test_cbam():
    # With a kernel of zeros the second gate is 1/2.
    y = vision.cbam(X, REDUCE, EXPAND, maps.conv(jnp.zeros((3, 3, 2, 1))))
    assert float(y[0, 1, 0, 0]) == pytest.approx(3 * sigmoid(5.0) / 2, rel=1e-6)


def test_eca():
    # Taps (a, b, c) on the channels (3, -1), with zeros around: (3b - c, 3a - b).
    y = vision.eca(X, maps.conv1d(jnp.array([0.5, 1.0, 2.0]).reshape(3, 1, 1)))
    assert float(y[0, 0, 1, 0]) == pytest.approx(2 * sigmoid(3 * 1.0 - 2.0), rel=1e-6)
    assert float(y[0, 0, 1, 1]) == pytest.approx(-sigmoid(3 * 0.5 - 1.0), rel=1e-6)


@pytest.mark.parametrize(("combine", "joint"), [("add", 1.0 + 4.0), ("multiply", 1.0 * 4.0)])
def test_bam(combine, joint):
    # Channel branch as SE's: 1 for channel 0. Spatial branch: relu(6 - 1) - 1 = 4 at the last one.
    convs = [maps.dense(jnp.ones((2, 1)))]
    project = maps.dense(jnp.ones((1, 1)), jnp.array([-1.0]))
    y = vision.bam(X, REDUCE, identity, EXPAND, convs, [identity], project, combine=combine)
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * (1 + sigmoid(joint)), rel=1e-6)


def test_coordinate_attention():
    # Row 1 has the means (4.5, -1), column 1 (4, -1). Reduced: 1.25 and 1; their hard swish is
    # x (x + 3) / 6: 0.885416..., 2/3.
    y = vision.coordinate_attention(X, REDUCE, identity, EXPAND, EXPAND)
    row, column = sigmoid(2 * 1.25 * 4.25 / 6), sigmoid(2 * 4 / 6)
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * row * column, rel=1e-6)


def test_simam():
    # d = 9 at the last place, v = 14 / 3.
    y = vision.simam(X)
    assert float(y[0, 1, 1, 0]) == pytest.approx(6 * sigmoid(9 / (4 * (14 / 3 + 1e-4)) + 0.5), 1e-6)
    assert float(y[0, 1, 1, 1]) == pytest.approx(-sigmoid(0.5), rel=1e-6)


def test_the_kernel_sizes_of_the_paper():
    channels = (1, 2, 4, 8, 16, 64, 128, 512, 1024, 2048)
    sizes = [vision.eca_kernel_size(c) for c in channels]
    assert sizes == [1, 1, 1, 3, 3, 3, 5, 5, 5, 7]
