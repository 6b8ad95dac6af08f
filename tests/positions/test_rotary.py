"""Rotary positions: the oracle, the laws, and wrong arguments."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import Coords, positions
from flax_attn.positions import Rotary
from tests.oracles import rotary as oracle
from tests.tolerances import FORWARD, GRADIENT, assert_close

B, T, N, D = 2, 7, 3, 12
LAYOUTS = ["half", "interleaved"]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


X = random(B, T, N, D)
PLACES = {
    "shared": np.arange(T),
    "offset": np.arange(T) + 1000,
    "packed": np.array([0, 1, 2, 0, 1, 0, 1]),
    "per batch element": np.stack([np.arange(T), np.arange(T)[::-1] - 3]),
    "one row for the batch": np.arange(T)[None],
    "fractions": np.arange(T) / 3,
}


@pytest.mark.parametrize("rotated", [D, 8, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotation_is_a_product_of_complex_numbers(layout, rotated, x64):
    values = oracle.plain(rotated, 100.0)
    rotate = jax.jit(lambda x, p: Rotary(D, 100.0, layout=layout, rotated=rotated)(x, p))
    for name, places in PLACES.items():
        expected = oracle.rotate(X, places, values, layout=layout)
        assert_close(rotate(X, places), expected, FORWARD["float64"] * 10, name)


def test_leading_axes_may_be_many_or_none(x64):
    x, places = random(2, 3, T, N, D), random(3, T)
    rotary = jax.jit(Rotary(D))
    assert_close(rotary(x, places), oracle.rotate(x, places, oracle.plain(D)), FORWARD["float64"])
    assert_close(
        rotary(x[0, 0], places[0]),
        oracle.rotate(x[0, 0], places[0], oracle.plain(D)),
        FORWARD["float64"],
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axial", [False, True])
def test_each_section_reads_its_own_axis_of_positions(axial, layout, x64):
    sections = (1, 3, 2)
    places = np.random.default_rng(1).integers(0, 50, (B, T, 3))
    values = oracle.plain(D)
    if axial:  # each axis has the whole range
        values = np.concatenate([oracle.plain(2 * size) for size in sections])
    rotary = Rotary(D, layout=layout, sections=sections, axial=axial)
    expected = oracle.rotate(X, places, values, layout=layout, sections=sections)
    assert_close(jax.jit(rotary)(X, places), expected, FORWARD["float64"] * 10)


def test_an_image_is_rotated_by_rows_and_columns_as_written_by_hand(x64):
    """One pair turns by the row, one by the column."""
    x = random(6, 1, 4)
    row, column = np.divmod(np.arange(6), 3)
    rotary = Rotary(4, sections=(1, 1), axial=True)
    out = rotary(x, np.stack([row, column], axis=-1))
    u, v, w, z = x[:, 0].T
    expected = [
        u * np.cos(row) - w * np.sin(row),
        v * np.cos(column) - z * np.sin(column),
        w * np.cos(row) + u * np.sin(row),
        z * np.cos(column) + v * np.sin(column),
    ]
    assert_close(out[:, 0], np.stack(expected, axis=-1), FORWARD["float64"])


def test_equal_positions_on_all_axes_are_plain_positions():
    x, places = X.astype(np.float32), PLACES["per batch element"]
    plain = Rotary(D)(x, places)
    sectioned = Rotary(D, sections=(1, 2, 3))(x, np.stack([places] * 3, axis=-1))
    chex.assert_trees_all_close(plain, sectioned, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_depend_on_differences_of_positions_only(layout, x64):
    query, key = random(T, N, D), random(T, N, D, seed=1)

    @jax.jit
    def scores(shift):
        rotary = Rotary(D, layout=layout)
        q, k = rotary(query, jnp.arange(T) + shift), rotary(key, 2 * jnp.arange(T) + shift)
        return jnp.einsum("tnd,snd->nts", q, k)

    assert_close(scores(12345), scores(0), 1e-11)
    assert np.abs(scores(0) - np.einsum("tnd,snd->nts", query, key)).max() > 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_are_kept_and_position_0_is_the_identity(layout):
    x = X.astype(np.float32)
    rotary = jax.jit(Rotary(D, layout=layout))
    norms = [np.linalg.norm(np.asarray(a), axis=-1) for a in (x, rotary(x, np.arange(T)))]
    assert_close(*norms, FORWARD["float32"])
    chex.assert_trees_all_equal(rotary(x, np.zeros(T, int)), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_beyond_the_rotated_ones_stay_bit_for_bit(layout, dtype):
    x = jnp.asarray(X, dtype)
    out = jax.jit(Rotary(D, layout=layout, rotated=6))(x, np.arange(T))
    chex.assert_type(out, dtype)
    chex.assert_trees_all_equal(out[..., 6:], x[..., 6:])
    assert (np.asarray(out[:, 1:, :, :6]) != np.asarray(x[:, 1:, :, :6])).mean() > 0.9


def test_a_slice_is_rotated_as_the_whole_is_so_decoding_continues():
    """Also when the cache holds keys of other batch elements at other positions."""
    x, places = X.astype(np.float32), PLACES["per batch element"]
    rotary = jax.jit(Rotary(D))
    whole = rotary(x, places)
    steps = [rotary(x[:, t : t + 1], places[:, t : t + 1]) for t in range(T)]
    chex.assert_trees_all_equal(np.concatenate(steps, axis=1), np.asarray(whole))


@pytest.mark.parametrize("rotated", [None, 8])
@pytest.mark.parametrize("flat", [False, True])
def test_weights_move_between_the_layouts(flat, rotated, x64):
    """The scores of the half layout and reordered weights are those of the interleaved layout."""
    x, kernels = random(T, 5), random(2, 5, N, D, seed=1)
    bias = random(1, N, D, seed=2)

    @jax.jit
    def scores(kernels, bias, places, rotary):
        q, k = (rotary(jnp.einsum("tm,mnd->tnd", x, kernel) + bias, places) for kernel in kernels)
        return jnp.einsum("tnd,snd->nts", q, k)

    def moved(array, function):
        given = array.reshape(*array.shape[:-2], N * D) if flat else array
        return function(given, D, rotated=rotated).reshape(array.shape)

    halves = [moved(a, positions.to_half) for a in (kernels, bias)]
    settings = [Rotary(D, layout=layout, rotated=rotated) for layout in LAYOUTS]
    half, interleaved = (
        scores(*weights, np.arange(T), jax.tree_util.Partial(rotary))
        for weights, rotary in zip([halves, (kernels, bias)], settings, strict=True)
    )
    assert_close(half, interleaved, FORWARD["float64"] * 10)
    assert isinstance(halves[0], np.ndarray)
    for before, after in zip((kernels, bias), halves, strict=True):
        assert not np.array_equal(before, after)
        np.testing.assert_array_equal(moved(after, positions.to_interleaved), before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_derivative_rotates_backwards(layout, x64):
    places, table = PLACES["per batch element"], oracle.plain(8)
    cotangent = random(B, T, N, D, seed=1)
    rotary = Rotary(D, layout=layout, rotated=8)
    _, pull_back = jax.vjp(lambda x: rotary(x, places), X)
    back = oracle.rotate(cotangent, -places, table, layout=layout)
    assert_close(jax.jit(pull_back)(cotangent)[0], back, GRADIENT["float64"])


def test_frequencies_and_fractional_positions_have_derivatives(x64):
    """Of ⟨c, rotated x⟩, by central differences of the oracle."""
    places, values = PLACES["fractions"], np.array(oracle.plain(D))
    c, step = random(B, T, N, D, seed=1), 1e-6

    def loss(places, values):
        return jnp.sum(c * positions.rotary(X, places, values))

    def slope(of, direction):
        ends = [
            np.sum(c * oracle.rotate(X, places + e * (of == 0), values + e * direction * of))
            for e in (step, -step)
        ]
        return (ends[0] - ends[1]) / (2 * step)

    by_place, by_value = jax.jit(jax.grad(loss, argnums=(0, 1)))(places, values)
    assert_close(by_place.sum(), slope(0, 0), 1e-7)
    direction = random(D // 2, seed=2)
    assert_close(by_value @ direction, slope(1, direction), 1e-7)


def test_vmap_over_everything_is_a_loop():
    x, places, tables = X.astype(np.float32), PLACES["per batch element"], random(B, D // 2)
    tables = positions.Frequencies(jnp.asarray(tables, jnp.float32), jnp.array([1.0, 2.0]))
    out = jax.jit(jax.vmap(positions.rotary))(x, places, tables)
    expected = [
        oracle.rotate(x[b], places[b], tables.values[b]) * (b + 1)  # its attention factor
        for b in range(B)
    ]
    assert_close(out, np.stack(expected), FORWARD["float32"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_rounded_once(layout):
    """An entry is off by half a unit in the last place, 2⁻⁸ at most, and by float32's errors."""
    x = jnp.asarray(random(B, 64, N, D), jnp.bfloat16)
    out = jax.jit(Rotary(D, layout=layout))(x, np.arange(64))
    table = oracle.plain(D)
    expected = oracle.rotate(np.asarray(x, np.float64), np.arange(64), table, layout=layout)
    chex.assert_type(out, jnp.bfloat16)
    error = np.abs(np.asarray(out, np.float64) - expected)
    assert (error <= 2.0**-8 * np.abs(expected) + 1e-5).all()


@pytest.mark.parametrize("start", [0, 4096, 131_072])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_angles_are_float32_in_every_dtype(dtype, start):
    """Positions of bfloat16 would be off by up to 256 tokens at 131,072."""
    x, places = jnp.ones((T, 1, D), dtype), np.arange(T) + start
    expected = oracle.rotate(np.ones(x.shape), places, np.float32(oracle.plain(D)))
    rotary, tolerance = jax.jit(Rotary(D)), FORWARD[dtype] + start * 2.0**-23
    for kind in (np.int32, np.int64, np.uint32, np.float32):
        assert_close(rotary(x, places.astype(kind)), expected, tolerance)
    assert_close(Rotary(D)(x, places), expected, tolerance)  # positions that are known


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA drops the barrier too early")
def test_rotations_of_one_program_share_their_cosines():
    """Queries and keys of all layers: each cosine is computed once, not once per head or layer."""

    def layers(x, places):
        rotary = Rotary(D)
        for _ in range(3):
            query, key = rotary(x, places), rotary(2 * x, places)
            x = x + jnp.einsum("tnd,snd->tns", query, key).sum(-1, keepdims=True)
        return x

    lowered = jax.jit(layers).lower(X[0].astype(np.float32), np.arange(T))
    text = lowered.compile().as_text()
    assert text.count(" cosine(") == 1
    assert f"f32[{T},{D // 2}]" in next(x for x in text.splitlines() if " cosine(" in x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_meshes_each_device_rotates_its_own_tokens_and_heads(layout):
    x, places = random(2, 8, 4, D).astype(np.float32), np.arange(8)
    rotary = Rotary(D, scaling=positions.DynamicNTK(2.0, 4), layout=layout, rotated=8)
    expected = jax.jit(rotary)(x, places)
    shares = P("batch", "tokens"), P("tokens")
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((2, 4), ("batch", "tokens"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            given = [
                jax.device_put(a, NamedSharding(mesh, share))
                for a, share in zip((x, places), shares, strict=True)
            ]
            out = jax.jit(rotary)(*given)
        chex.assert_trees_all_close(out, expected, rtol=0, atol=1e-6)
        assert out.sharding.shard_shape(out.shape) == (1, 2, 4, D)
    mapped = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=shares, out_specs=P("batch", "tokens")
    )
    told = jax.jit(mapped(functools.partial(rotary, length=8)))(x, places)
    chex.assert_trees_all_close(told, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"length must be given .* along \['tokens'\], got None"):
        mapped(rotary)(x, places)


def test_the_setting_is_hashable_and_its_numbers_are_normalised():
    a = Rotary(np.int64(8), 10_000, positions.Linear(2), sections=[2, 2], rotated=8)
    b = Rotary(8, 10_000.0, positions.Linear(2.0), sections=(2, 2), rotated=8)
    assert a == b
    assert hash(a) == hash(b)
    assert jax.tree.leaves(a) == [a]
    assert a != Rotary(8, scaling=positions.NTK(2.0), sections=(2, 2), rotated=8)


def test_one_program_serves_all_positions():
    traces = []

    @jax.jit
    def step(x, places):
        traces.append(None)
        return Rotary(D, scaling=positions.DynamicNTK(2.0, 4))(x, places)

    for t in range(3):
        step(X[:, t : t + 1].astype(np.float32), jnp.full((B, 1), t))
    assert len(traces) == 1


R4 = positions.frequencies(4)
rotate = positions.rotary
x = jnp.ones((2, 5, 3, 8))
CASES = {
    "a rotary table for another head size": (
        lambda: Rotary(4)(x, jnp.arange(5)),
        ValueError,
        r"Rotary: x must have heads of the size D = 4 .* got \[2, 5, 3, 8\]\. "
        r"Write Rotary\(8, \.\.\.\).* Rotary\(8, rotated=4\)\.",
    ),
    "more rotated features than there are": (
        lambda: rotate(x, jnp.arange(5), positions.frequencies(16)),
        ValueError,
        r"R = 2 · 8 rotated features must be at most D = 8, .*positions\.frequencies\(8\)",
    ),
    "odd": (
        lambda: positions.frequencies(5),
        ValueError,
        r"frequencies: head_dim must be a positive even number, got 5\. .*rotate 4 of them",
    ),
    "an odd head": (lambda: Rotary(5), ValueError, "Rotary: head_dim must be .* even .* got 5"),
    "an odd part": (
        lambda: Rotary(8, rotated=3),
        ValueError,
        r"rotated must be even, in 2 \.\.\. head_dim = 8, got 3\.",
    ),
    "too large a part": (lambda: Rotary(8, rotated=10), ValueError, "got 10"),
    "no head size": (lambda: Rotary(8.0), TypeError, "head_dim must be one whole number, got 8.0"),
    "positions of another length": (
        lambda: rotate(x, jnp.arange(4), R4),
        ValueError,
        r"positions must broadcast to \[\*B, T\] = \[2, 5\], with all T, got \[4\]\.$",
    ),
    "positions of one token": (lambda: rotate(x, jnp.arange(1), R4), ValueError, r"got \[1\]\.$"),
    "positions of the heads": (
        lambda: rotate(x, jnp.arange(3), R4),
        ValueError,
        r"got \[3\]\. The layout of x is \[\*B, T, N, D\]: jnp\.swapaxes\(x, -3, -2\)",
    ),
    "positions of another batch": (
        lambda: rotate(x, jnp.zeros((3, 5)), R4),
        ValueError,
        r"= \[2, 5\], with all T, got \[3, 5\]\.$",
    ),
    "positions of more axes": (lambda: rotate(x, jnp.zeros((1, 2, 5)), R4), ValueError, "got"),
    "one position": (
        lambda: rotate(x[:, :1], jnp.int32(3), R4),
        ValueError,
        r"got \[\]\. For one token: positions\[None\]\.",
    ),
    "one position per batch element": (
        lambda: rotate(x[:, :1], jnp.arange(2), R4),
        ValueError,
        r"= \[2, 1\], .* got \[2\]\. For one token per batch element: positions\[:, None\]\.",
    ),
    "an axis without sections": (
        lambda: rotate(x, jnp.zeros((2, 5, 3)), R4),
        ValueError,
        r"got \[2, 5, 3\]\. Positions with several numbers per token need sections\.",
    ),
    "sections without an axis": (
        lambda: rotate(x, jnp.arange(5), R4, sections=(1, 1)),
        ValueError,
        r"\[\*B, T, A\] = \[2, 5, 2\], .* got \[5\]\. .*jnp\.stack\(\[positions\] \* 2, axis=-1\)",
    ),
    "sections of other axes": (
        lambda: rotate(x, jnp.zeros((5, 3)), R4, sections=(1, 1)),
        ValueError,
        r"= \[2, 5, 2\], with all T, got \[5, 3\]\.",
    ),
    "sections that do not sum up": (
        lambda: rotate(x, jnp.zeros((5, 2)), R4, sections=(2, 2)),
        ValueError,
        r"rotary: sections must sum to R/2 = 2, got \(2, 2\) with sum 4\.",
    ),
    "sections of a setting": (
        lambda: Rotary(8, sections=(1, 2)),
        ValueError,
        r"Rotary: sections must sum to R/2 = 4, got \(1, 2\) with sum 3\.",
    ),
    "an empty section": (lambda: Rotary(8, sections=(4, 0)), ValueError, "at least 1, got 0"),
    "sections as a number": (lambda: Rotary(8, sections=4), TypeError, "sections must be .*got 4"),
    "axial without sections": (
        lambda: Rotary(8, axial=True),
        ValueError,
        r"axial must come with sections.*sections=\(2, 2\)",
    ),
    "layout": (
        lambda: rotate(x, jnp.arange(5), R4, layout="llama"),
        ValueError,
        r"rotary: layout must be \"half\" or \"interleaved\", got 'llama'\.",
    ),
    "layout of a setting": (lambda: Rotary(8, layout="gguf"), ValueError, "Rotary: layout must"),
    "coords": (
        lambda: rotate(x, Coords.arange(5), R4),
        TypeError,
        r"rotary: positions must be numbers, got Coords\. Write coords\.positions\.",
    ),
    "coords for a setting": (
        lambda: Rotary(8)(x, Coords.arange(5)),
        TypeError,
        r"Rotary: positions must be numbers, got Coords\. Write coords\.positions\.",
    ),
    "boolean positions": (
        lambda: rotate(x, jnp.ones(5, bool), R4),
        TypeError,
        "positions must be integers or floating point, got bool",
    ),
    "no positions": (
        lambda: rotate(x, None, R4),
        TypeError,
        "positions must be an array, got None",
    ),
    "integers": (lambda: rotate(x.astype(int), jnp.arange(5), R4), TypeError, "x must be floating"),
    "no heads": (
        lambda: rotate(x[0, 0], jnp.arange(3), R4),
        ValueError,
        r"x must be \[\*B, T, N, D\], got \[3, 8\]\. Add a head axis: x\[\.\.\., None, :\]",
    ),
    "a number as frequencies": (
        lambda: rotate(x, jnp.arange(5), 10_000),
        TypeError,
        r"frequencies must be Frequencies or an array \[R/2\], got int\. Write positions\.freq",
    ),
    "a setting as frequencies": (lambda: rotate(x, x, Rotary(8)), TypeError, "got Rotary"),
    "a table of angles": (
        lambda: rotate(x, jnp.arange(5), jnp.ones((5, 4))),
        ValueError,
        r"frequencies must be \[R/2\], one for each pair of features, got \[5, 4\]",
    ),
    "a kernel of another head size": (
        lambda: positions.to_half(jnp.ones((12, 10)), 4),
        ValueError,
        r"to_half: the last axis of kernel must be D = 4 or N · D, got \[12, 10\]\. .*weight\.T",
    ),
    "an odd part of a kernel": (
        lambda: positions.to_interleaved(jnp.ones((12, 8)), 4, rotated=3),
        ValueError,
        r"to_interleaved: rotated must be even, in 2 \.\.\. head_dim = 4, got 3\.",
    ),
    "an odd head of a kernel": (
        lambda: positions.to_half(jnp.ones((12, 9)), 3),
        ValueError,
        "rotated must be even",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_arguments_are_refused_with_the_numbers_and_the_fix(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        call()
