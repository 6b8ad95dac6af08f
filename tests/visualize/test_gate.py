"""Pictures of gates: the numbers that are drawn, over the image that was given."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from flax import nnx as flax_nnx
from matplotlib.axes import Axes

from flax_attn import nnx, visualize

mpl.use("Agg")
import matplotlib.pyplot as plt

IMAGE = np.linspace(0, 1, 8 * 12 * 3, dtype=np.float32).reshape(8, 12, 3)
X = np.random.default_rng(0).normal(size=(2, 4, 6, 32)).astype(np.float32)


def drawn(ax):
    return ax.images[-1].get_array()


def sown(name, *args):
    """What a module sows, of the second image."""
    module = getattr(nnx, name)(*args, **{"rngs": flax_nnx.Rngs(0)} if args else {})
    capture = flax_nnx.capture(lambda module, x: module(x), flax_nnx.Intermediate)
    _, values = flax_nnx.jit(capture)(module, X)
    return jax.tree.map(lambda gate: np.asarray(gate)[1], flax_nnx.to_pure_dict(values))


@pytest.mark.parametrize("args", [("BAM", 32), ("SCSE", 32), ("SimAM",)], ids=lambda args: args[0])
def test_the_mean_over_channels_is_drawn(args):
    gate = sown(*args)["gate"][0]
    ax = visualize.gate(IMAGE, gate)
    assert isinstance(ax, Axes)
    assert np.ptp(drawn(ax)) > 0
    chex.assert_trees_all_close(drawn(ax), gate.mean(-1), rtol=1e-5)


def test_gates_over_places_and_over_channels_are_multiplied():
    gates = sown("CBAM", 32)
    (channel,), (spatial,) = gates["channel"]["gate"], gates["spatial"]["gate"]
    ax = visualize.gate(IMAGE, spatial)
    chex.assert_trees_all_equal(drawn(ax), spatial[..., 0])
    ax = visualize.gate(IMAGE, (channel, spatial))
    chex.assert_trees_all_close(drawn(ax), channel.mean() * spatial[..., 0], rtol=1e-5)


def test_the_pair_of_coordinate_attention_is_multiplied():
    rows, columns = sown("CoordinateAttention", 32)["gate"][0]
    ax = visualize.gate(IMAGE, (rows, columns))
    expected = np.einsum("hc,wc->hw", rows[:, 0], columns[0]) / 32
    chex.assert_trees_all_close(drawn(ax), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["SqueezeExcite", "ECA"])
def test_a_gate_over_channels_is_drawn_where_its_channels_are_active(name):
    gate = sown(name, 32)["gate"][0]
    weights = abs(X[1]) / abs(X[1]).sum(-1, keepdims=True)
    ax = visualize.gate(IMAGE, gate, features=X[1])
    chex.assert_trees_all_close(drawn(ax), weights @ gate[0, 0], rtol=1e-5)


def test_features_by_hand():
    gate = np.array([[[0.2, 1.0]]])
    features = np.array([[[1.0, 0.0], [0.0, -3.0], [3.0, 1.0]]])
    ax = visualize.gate(IMAGE, gate, features=features)
    chex.assert_trees_all_close(drawn(ax), np.array([[0.2, 1.0, 0.4]]))


def test_places_without_activity_are_left_out():
    features = np.array([[[1.0], [0.0]]])
    shares = drawn(visualize.gate(IMAGE, np.full((1, 1, 1), 0.5), features=features))
    chex.assert_trees_all_equal(np.ma.getmaskarray(shares), np.array([[False, True]]))
    assert shares[0, 0] == 0.5


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        (255 * IMAGE).astype(np.uint8),
        IMAGE[..., 0],
        IMAGE[..., :1],
        jnp.asarray(IMAGE),
        IMAGE * np.float32(1 + 1e-6),
    ],
    ids=["color", "uint8", "H W", "H W 1", "jax", "rounded"],
)
def test_the_image_is_grey_beneath_and_the_heat_map_covers_it(image):
    grey, heat = visualize.gate(image, np.ones((2, 3, 1))).images
    chex.assert_shape(grey.get_array(), (8, 12))
    red, green, blue = IMAGE[2, 3] if image.shape[2:] == (3,) else 3 * [IMAGE[2, 3, 0]]
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    assert grey.get_array()[2, 3] == pytest.approx(luminance, abs=1 / 255)
    assert heat.get_extent() == list(grey.get_extent())
    assert 0 < heat.get_alpha() < 1


def test_the_axes_given_are_used_and_a_bar_says_what_the_numbers_are():
    figure, ax = plt.subplots()
    assert visualize.gate(IMAGE, np.ones((2, 3, 5)), ax=ax) is ax
    assert plt.get_fignums() == [figure.number]
    assert ax.images[-1].colorbar.ax.get_ylabel() == "gate, mean of 5 channels"


def test_half_precision_is_drawn():
    ax = visualize.gate(IMAGE, jnp.full((2, 3, 1), 0.5, jnp.bfloat16))
    chex.assert_type(drawn(ax), np.float32)


ONES = np.ones((2, 3, 4))
ERRORS = {
    "batch of images": ((IMAGE[None], ONES), {}, r"image must be one image.*image\[0\]"),
    "image channels": ((IMAGE[..., :2], ONES), {}, r"image must be \[H, W\].*got \[8, 12, 2\]"),
    "normalised image": ((3 * IMAGE, ONES), {}, r"lie in 0 \.\.\. 1, got 0 \.\.\. 3"),
    "image not finite": ((IMAGE * np.nan, ONES), {}, "image must be finite, got 288 of 288"),
    "batch of gates": ((IMAGE, ONES[None]), {}, r"got \[1, 2, 3, 4\]\. Write gate\[0\]"),
    "gate without channels": ((IMAGE, ONES[..., 0]), {}, r"gate must be \[h, w, C\], got \[2, 3\]"),
    "gate not finite": ((IMAGE, ONES * np.inf), {}, "gate must be finite, got 24 of 24"),
    "gates of two sizes": ((IMAGE, (ONES, ONES[:, :2])), {}, r"got \[\[2, 3, 4\], \[2, 2, 4\]\]"),
    "gate without places": ((IMAGE, ONES[:1, :1]), {}, r"got \[1, 1, 4\]\. Pass features"),
    "features of another size": (
        (IMAGE, ONES),
        {"features": ONES[:1]},
        r"features must be \[h, w, C\], to which the gate \[2, 3, 4\] broadcasts, got \[1, 3, 4\]",
    ),
    "features not finite": ((IMAGE, ONES), {"features": ONES * np.nan}, "features must be finite"),
}


@pytest.mark.parametrize(("args", "options", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_to_do(args, options, message):
    with pytest.raises(ValueError, match=r"^visualize\.gate: .*" + message):
        visualize.gate(*args, **options)


def test_matplotlib_is_imported_by_drawing_only():
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, flax_attn\n"
        "try: flax_attn.visualize.gate(np.ones((4, 4)), np.ones((2, 2, 1)))\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "visualize.gate: matplotlib must be installed" in done.stdout, done.stderr
