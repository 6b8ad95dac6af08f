"""Attention in windows: who sees whom, the position terms, and the traps of popular code."""

import functools

import chex
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from flax_attn import dot_product_attention, linen, nnx, vision
from tests.mechanisms import linen_module, maps_of, merged, random_variables
from tests.oracles import vision as oracles
from tests.tolerances import FORWARD, assert_close

RNG = np.random.default_rng(0)
FEATURES = 32


def picture(*shape):
    return RNG.normal(size=(*shape, FEATURES)).astype(np.float32)


def arguments(name, module=None, **changes):
    """Random maps of a mechanism and its contract's settings, some of them changed."""
    variables = random_variables(name, FEATURES, dtype=np.float32, module=module)
    return maps_of(name, variables) | changes, merged(variables)


def call(function, x, *maps_given, **given):
    """What a function makes of a picture, in one program."""
    return jax.jit(lambda x: function(x, *maps_given, **given))(x)


def one_head(x):
    return x[..., None, :]


def no_heads(x):
    return x[..., 0, :]


def nothing(x):
    return jnp.zeros_like(one_head(x))


def numbered(height, width):
    """A picture of one channel with the numbers 0, 1, ..."""
    return np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)


# Without queries and keys every place gets the mean of what it sees.
MEANS = (nothing, nothing, one_head, no_heads)


def test_windows_see_themselves_and_nothing_else():
    y = call(vision.window_attention, numbered(2, 4), *MEANS, window_size=2)
    chex.assert_trees_all_close(y[0, :, :, 0], np.array([[2.5, 2.5, 4.5, 4.5]] * 2))


def test_a_shifted_window_is_cut_at_the_border():
    y = call(vision.window_attention, numbered(4, 4), *MEANS, window_size=2, shift_size=1)
    expected = np.array(
        [
            [0.0, 1.5, 1.5, 3.0],
            [6.0, 7.5, 7.5, 9.0],
            [6.0, 7.5, 7.5, 9.0],
            [12.0, 13.5, 13.5, 15.0],
        ]
    )
    chex.assert_trees_all_close(y[0, :, :, 0], expected)


def test_a_shift_of_one_axis_leaves_the_other():
    y = call(vision.window_attention, numbered(4, 2), *MEANS, window_size=2, shift_size=(1, 0))
    y = np.asarray(y)
    chex.assert_trees_all_close(y[0, :, :, 0].mean(1), np.array([0.5, 3.5, 3.5, 6.5]))
    chex.assert_trees_all_close(y[0, :, 0, 0], y[0, :, 1, 0], rtol=1e-7)


def test_what_came_around_is_hidden_however_large_its_score():
    """A mask that adds −100 lets a score of 1000 through."""
    image = np.array([0.0, 1.0, 2.0, 1000.0], np.float32).reshape(1, 1, 4, 1)
    heads = (one_head, one_head, one_head, no_heads)
    for x in (image, -image):
        y = call(vision.window_attention, x, *heads, window_size=(1, 2), shift_size=(0, 1))
        chex.assert_trees_all_equal(y[0, 0, ::3], x[0, 0, ::3])


def test_the_relative_bias_is_query_minus_key_and_not_scaled():
    table = np.zeros((3 * 3, 1), np.float32)
    table[5] = np.log(3.0)  # the row of Δ = (0, 1)
    x = np.array([[[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]] * 2], np.float32)
    y = call(vision.window_attention, x, *MEANS, relative_bias=jnp.asarray(table), window_size=2)
    # Both places of the left column see weights alike; the right one sees the left three times.
    chex.assert_trees_all_close(y[0, 0, 0], np.array([0.5, 0.5, 0.0, 0.0]))
    weights = np.array([3.0, 1.0, 1.0, 1.0]) / 6  # left in its own row, right, and the row below
    expected = np.array([weights[0] + weights[2], weights[1] + weights[3], 0.0, 0.0])
    chex.assert_trees_all_close(y[0, 0, 1], expected)


@pytest.mark.parametrize("shift", [(0, 0), (1, 1), (2, 0)])
def test_padding_is_seen_by_nobody(shift):
    x = picture(2, 7, 5)
    given, p = arguments("window_attention", shift_size=shift)
    y = call(vision.window_attention, x, **given)
    expected = oracles.window_attention(np.asarray(x, np.float64), p, shift=shift)
    assert_close(y, expected, FORWARD["float32"])


def test_padding_changes_nothing_where_windows_fit():
    x = picture(2, 6, 4)
    given, _ = arguments("window_attention")
    padded = call(vision.window_attention, x, **given)
    plain = call(vision.window_attention, x, **(given | {"pad": False}))
    chex.assert_trees_all_equal(plain, padded)
    module = linen_module("window_attention")
    variables = random_variables("window_attention", FEATURES, dtype=np.float32)
    with pytest.raises(ValueError, match="multiples of window_size"):
        module.clone(pad=False).apply(variables, picture(2, 7, 5))


def test_a_picture_smaller_than_the_window_is_padded_to_one():
    x = picture(1, 2, 1)
    given, p = arguments("window_attention", shift_size=0)
    expected = oracles.window_attention(np.asarray(x, np.float64), p, shift=(0, 0))
    assert_close(call(vision.window_attention, x, **given), expected, FORWARD["float32"])


def test_gradients_do_not_cross_windows():
    given, _ = arguments("window_attention")
    x = picture(1, 6, 4)
    total = lambda x: jnp.sum(vision.window_attention(x, **given)[0, 1, 1])
    gradient = jax.jit(jax.grad(total))(x)
    touched = np.any(np.asarray(gradient[0]) != 0, axis=-1)
    expected = np.zeros((6, 4), bool)
    expected[1:4, 1:3] = True
    chex.assert_trees_all_equal(touched, expected)


def test_grids_see_places_spread_over_the_picture():
    y = call(vision.grid_attention, numbered(2, 4), *MEANS, grid_size=2)
    expected = np.array([[3.0, 4.0, 3.0, 4.0]] * 2)  # means of 0 2 4 6 and of 1 3 5 7
    chex.assert_trees_all_close(y[0, :, :, 0], expected)


def test_grid_attention_is_window_attention_of_the_rearranged_picture():
    """Gathering each grid in one place turns it into a window, bias included."""
    x = picture(2, 4, 6)
    given, _ = arguments("grid_attention")
    maps_given = {key: value for key, value in given.items() if key != "grid_size"}

    def gathered(x):
        x = x.reshape(2, 2, 2, 3, 2, FEATURES)  # rows: grid, step; columns: grid, step
        return x.transpose(0, 2, 1, 4, 3, 5).reshape(2, 4, 6, FEATURES)

    windows = call(vision.window_attention, gathered(x), **maps_given, window_size=(2, 3))
    y = np.asarray(call(vision.grid_attention, x, **given))
    assert_close(gathered(y), windows, FORWARD["float32"])


def test_position_terms_are_those_of_the_query_not_of_the_key():
    """A popular copy has them transposed: q_j · r_i."""
    x = np.array([[[[2.0], [5.0]]]], np.float32)
    r_h, r_w = jnp.zeros((1, 1)), jnp.array([[0.0], [0.0], [1.0]])  # one step to the right
    y = call(vision.bottleneck_attention, x, one_head, nothing, one_head, r_h, r_w)
    left = np.exp(2.0) / (1 + np.exp(2.0))  # the left place has q = 2, and q · r = 2 for the right
    expected = np.array([2 * (1 - left) + 5 * left, 3.5])
    chex.assert_trees_all_close(y[0, 0, :, 0], expected)


def test_position_terms_are_scaled_like_the_rest_unless_told_otherwise():
    given, p = arguments("bottleneck_attention")
    x = picture(2, 4, 5)
    results = [
        call(vision.bottleneck_attention, x, **given, scale_positions=scaled)
        for scaled in (True, False)
    ]
    for y, scaled in zip(results, (True, False), strict=True):
        expected = oracles.bottleneck_attention(np.asarray(x, np.float64), p, scaled)
        assert_close(y, expected, FORWARD["float32"])
    assert not np.allclose(*results, rtol=1e-2)


@pytest.mark.parametrize("size", [(2, 5), (4, 7)])
def test_tables_of_another_size_are_refused_not_sliced(size):
    given, _ = arguments("bottleneck_attention")
    with pytest.raises(ValueError, match=r"must be \[2 [HW] − 1, D\].*resample it"):
        vision.bottleneck_attention(picture(1, *size), **given)
    made = nnx.BottleneckAttention(FEATURES, (4, 5), rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match="resample it"):
        made(picture(1, *size))
    variables = random_variables("bottleneck_attention", FEATURES, dtype=np.float32)
    with pytest.raises(flax.errors.ScopeParamShapeError):
        linen.BottleneckAttention().apply(variables, picture(1, *size))


def test_position_terms_need_no_array_of_all_pairs():
    size = 48
    x = jnp.ones((1, size, size, 8))
    table = jnp.ones((2 * size - 1, 8))
    blockwise = functools.partial(dot_product_attention, implementation="blockwise")

    @jax.jit
    def attend(x, table):
        return vision.bottleneck_attention(
            x, one_head, one_head, one_head, table, table, attention=blockwise
        )

    memory = attend.lower(x, table).compile().memory_analysis().temp_size_in_bytes
    assert memory < 4 * size**4


@pytest.mark.parametrize(
    ("halo", "masked", "scaled"),
    [(0, False, True), (1, False, True), (1, True, False), (3, False, False), (3, True, True)],
)
def test_halos_of_any_width_equal_the_oracle(halo, masked, scaled):
    module = linen.HaloAttention(num_heads=4, block_size=2, halo_size=halo)
    options = {"halo_size": halo, "mask_padding": masked, "scale_positions": scaled}
    given, p = arguments("halo_attention", module, **options)
    x = picture(1, 4, 6)
    expected = oracles.halo_attention(
        np.asarray(x, np.float64), p, 2, halo, scale_positions=scaled, mask_padding=masked
    )
    assert_close(call(vision.halo_attention, x, **given), expected, FORWARD["float32"])


def test_without_halo_and_positions_it_is_window_attention():
    x = picture(2, 4, 6)
    given, _ = arguments("window_attention")
    projections = {name: given[name] for name in ("query", "key", "value")}
    tables = {"relative_height": jnp.zeros((3, 8)), "relative_width": jnp.zeros((3, 8))}
    y = call(vision.halo_attention, x, **projections, **tables, block_size=2, halo_size=0)

    def join(heads):
        return heads.reshape(*heads.shape[:-2], -1)

    expected = call(vision.window_attention, x, **projections, out=join, window_size=2)
    assert_close(y, expected, FORWARD["float32"])


def test_padding_takes_softmax_mass_unless_masked():
    x = np.ones((1, 4, 4, 1), np.float32)
    given = (nothing, nothing, one_head, *[jnp.zeros((2 * 4 - 1, 1))] * 2)
    attend = functools.partial(call, vision.halo_attention, x, *given, block_size=2)
    # Each block of 4 is a corner: of the 16 places of its window 9 lie inside.
    chex.assert_trees_all_close(attend(halo_size=1), 9 / 16)
    chex.assert_trees_all_close(attend(halo_size=1, mask_padding=True), 1.0)


@pytest.mark.parametrize("masked", [True, False])
def test_halo_attention_depends_on_its_queries_and_its_places(masked):
    """A popular copy inverts the mask: it attends to padding only."""
    given, _ = arguments("halo_attention", mask_padding=masked)
    x = picture(1, 4, 6)
    y = call(vision.halo_attention, x, **given)
    query = given["query"]
    other = call(vision.halo_attention, x, **(given | {"query": lambda x: -query(x)}))
    assert not np.allclose(y, other, rtol=1e-2)
    corner = lambda x: jnp.sum(vision.halo_attention(x, **given)[0, 0, 0])
    gradient = np.asarray(jax.jit(jax.grad(corner))(x))
    assert np.abs(gradient[0, 1, 1]).max() > 1e-3


@pytest.mark.parametrize(
    "name", ["window_attention", "grid_attention", "bottleneck_attention", "halo_attention"]
)
def test_weights_are_sown_on_request_and_their_rows_sum_to_one(name):
    x = picture(2, 4, 5 if name == "bottleneck_attention" else 6)
    module = linen_module(name)
    variables = random_variables(name, FEATURES, dtype=np.float32)
    asked = functools.partial(module.apply, sow_weights=True, mutable=["intermediates"])
    y, sown = jax.jit(asked)(variables, x)
    (weights,) = sown["intermediates"]["attention_weights"]
    places = {
        "window_attention": (2, 6, 4, 6, 6),  # rows padded to 6; padding has no weights
        "grid_attention": (2, 4, 4, 6, 6),
        "bottleneck_attention": (2, 4, 20, 20),
        "halo_attention": (2, 6, 4, 4, 64),
    }
    chex.assert_shape(weights, places[name])
    sums = np.sum(weights, axis=-1)
    assert np.all(
        (np.abs(sums - 1) < 1e-5) | ((sums == 0) if name == "window_attention" else False)
    )
    chex.assert_trees_all_equal(y, jax.jit(module.apply)(variables, x))


def test_a_module_of_nnx_sows_weights_only_inside_of_a_capture():
    made = nnx.GridAttention(8, num_heads=2, grid_size=2, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"only inside nnx\.capture"):
        jax.eval_shape(lambda x: made(x, sow_weights=True), jnp.ones((1, 2, 2, 8)))


@pytest.mark.parametrize(
    "name", ["window_attention", "grid_attention", "bottleneck_attention", "halo_attention"]
)
def test_every_implementation_of_attention_serves(name):
    x = picture(2, 4, 5 if name == "bottleneck_attention" else 6)
    given, _ = arguments(name)
    dense, blockwise = (
        call(
            getattr(vision, name),
            x,
            **given,
            attention=functools.partial(dot_product_attention, implementation=chosen),
        )
        for chosen in ("dense", "blockwise")
    )
    assert_close(blockwise, dense, FORWARD["float32"])


def rngs():
    return flax_nnx.Rngs(0)


BAD = {
    "window": (
        lambda: vision.window_attention(numbered(6, 5), *MEANS, window_size=3),
        ValueError,
        r"H and W must be multiples of window_size = \(3, 3\), got 6 · 5\. Set pad=True",
    ),
    "shift": (
        lambda: vision.window_attention(numbered(6, 6), *MEANS, window_size=3, shift_size=3),
        ValueError,
        r"shift_size must be less than window_size = \(3, 3\), got \(3, 3\)",
    ),
    "shift of one padded window": (
        lambda: vision.window_attention(
            numbered(2, 6), *MEANS, window_size=3, shift_size=1, pad=True
        ),
        ValueError,
        "got 1 for H = 2 and window_size = 3. Set that shift to 0",
    ),
    "negative shift": (
        lambda: vision.window_attention(numbered(6, 6), *MEANS, window_size=3, shift_size=-1),
        ValueError,
        "shift_size must be one number or .* at least 0, got -1",
    ),
    "shift of one window": (
        lambda: vision.window_attention(numbered(6, 3), *MEANS, window_size=3, shift_size=1),
        ValueError,
        "got 1 for W = 3 and window_size = 3. Set that shift to 0",
    ),
    "window of half a place": (
        lambda: vision.window_attention(numbered(6, 3), *MEANS, window_size=1.5),
        TypeError,
        "window_size must be one whole number or a pair, got 1.5",
    ),
    "no window": (
        lambda: vision.window_attention(numbered(6, 3), *MEANS, window_size=(0, 3)),
        ValueError,
        r"at least 1, got \(0, 3\)",
    ),
    "out": (
        lambda: vision.window_attention(
            numbered(6, 6), *MEANS[:3], lambda heads: heads[..., 0, :].repeat(2, -1), window_size=3
        ),
        ValueError,
        r"out must return .* = \[1, 4, 9, 1\], got \[1, 4, 9, 2\]",
    ),
    "table of another window": (
        lambda: vision.window_attention(
            numbered(6, 6), *MEANS, window_size=3, relative_bias=jnp.ones((9, 1))
        ),
        ValueError,
        r"table must be .* = \[25, N\] for the window \(3, 3\), got \[9, 1\]",
    ),
    "table of other heads": (
        lambda: vision.grid_attention(
            numbered(6, 6), *MEANS, grid_size=3, relative_bias=jnp.ones((25, 2))
        ),
        ValueError,
        r"relative_bias must have a column for each of N = 1 heads, got \[25, 2\]",
    ),
    "grid": (
        lambda: vision.grid_attention(numbered(6, 5), *MEANS, grid_size=(2, 3)),
        ValueError,
        r"multiples of grid_size = \(2, 3\), got 6 · 5\. Pad or resize",
    ),
    "block": (
        lambda: vision.halo_attention(
            numbered(6, 5), *MEANS[:3], jnp.ones((15, 1)), jnp.ones((15, 1)), block_size=2
        ),
        ValueError,
        r"multiples of block_size = \(2, 2\), got 6 · 5",
    ),
    "no halo": (
        lambda: vision.halo_attention(
            numbered(6, 6), *MEANS[:3], jnp.ones((3, 1)), jnp.ones((3, 1)), halo_size=-1
        ),
        ValueError,
        "halo_size at least 0, got 8 and -1",
    ),
    "halo's tables": (
        lambda: vision.halo_attention(
            numbered(6, 6), *MEANS[:3], jnp.ones((15, 1)), jnp.ones((13, 1)), block_size=2
        ),
        ValueError,
        r"relative_width must be \[2 w − 1, D\] = \[15, D\], got \[13, 1\]",
    ),
    "head size of the tables": (
        lambda: vision.bottleneck_attention(
            numbered(2, 2), *MEANS[:3], jnp.ones((3, 1)), jnp.ones((3, 2))
        ),
        ValueError,
        r"relative_width must have rows of the queries' D = 1 features, got \[3, 2\]",
    ),
    "halo's query": (
        lambda: vision.halo_attention(
            numbered(2, 2),
            lambda x: x,
            *MEANS[1:3],
            jnp.ones((3, 1)),
            jnp.ones((3, 1)),
            block_size=2,
            halo_size=0,
        ),
        ValueError,
        r"query must return \[1, 2, 2\] \+ \[heads, head size\], got \[1, 2, 2, 1\]",
    ),
    "heads of Swin": (
        lambda: nnx.WindowAttention(48, num_heads=5, rngs=rngs()),
        ValueError,
        "C must be a multiple of num_heads = 5, got C = 48",
    ),
    "heads of BoTNet": (
        lambda: nnx.BottleneckAttention(30, (4, 4), rngs=rngs()),
        ValueError,
        "C must be a multiple of num_heads = 4, got C = 30",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_windows_are_refused_with_the_numbers_and_the_fix(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
