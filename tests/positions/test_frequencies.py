"""Frequencies of rotary positions and their scalings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_attn import positions
from tests.oracles import rotary as oracle
from tests.tolerances import assert_close

R, BASE, ORIGINAL = 64, 500_000.0, 8192
EXACT = 2.0**-23  # float32 tables are rounded once; relative to each entry
SHORT, LONG = np.linspace(1, 2, R // 2), np.linspace(1, 40, R // 2)

SCALINGS = {
    "none": (None, oracle.plain(R, BASE)),
    "Linear": (positions.Linear(8), oracle.linear(R, BASE, 8)),
    "NTK": (positions.NTK(8), oracle.ntk(R, BASE, 8)),
    "DynamicNTK": (
        positions.DynamicNTK(2, ORIGINAL),
        oracle.dynamic_ntk(R, BASE, 2, ORIGINAL, ORIGINAL),
    ),
    "YaRN": (positions.YaRN(4, ORIGINAL), oracle.yarn(R, BASE, 4, ORIGINAL)),
    "YaRN of other ends": (
        positions.YaRN(40, 4096, beta_fast=20, beta_slow=2, truncate=False),
        oracle.yarn(R, BASE, 40, 4096, 20, 2, truncate=False),
    ),
    "YaRN of a short length": (positions.YaRN(4, 64), oracle.yarn(R, BASE, 4, 64)),
    "YaRN of a long length": (
        positions.YaRN(4, 10**7, beta_fast=4096),
        oracle.yarn(R, BASE, 4, 10**7, 4096),
    ),
    "Llama3": (positions.Llama3(8, ORIGINAL), oracle.llama3(R, BASE, 8, ORIGINAL)),
    "Llama3 of other ends": (
        positions.Llama3(32, ORIGINAL, 2, 16),
        oracle.llama3(R, BASE, 32, ORIGINAL, 2, 16),
    ),
    "LongRoPE": (
        positions.LongRoPE(SHORT, LONG, ORIGINAL, factor=4),
        oracle.longrope(R, BASE, SHORT, LONG, ORIGINAL, 0),
    ),
}


def entries(actual, expected, relative=EXACT):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=relative, atol=0)


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_the_formula(name):
    scaling, expected = SCALINGS[name]
    made = positions.frequencies(R, base=BASE, scaling=scaling)
    chex.assert_type(made.values, jnp.float32)
    entries(made.values, expected)
    with jax.enable_x64(True):
        wide = positions.frequencies(R, base=BASE, scaling=scaling, dtype=jnp.float64)
        entries(wide.values, expected, 1e-14)


LENGTHS = {
    "DynamicNTK": lambda length: oracle.dynamic_ntk(R, BASE, 2, ORIGINAL, length),
    "LongRoPE": lambda length: oracle.longrope(R, BASE, SHORT, LONG, ORIGINAL, length),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_frequencies_follow_the_length_known_or_traced(name):
    scaling, _ = SCALINGS[name]
    traced = jax.jit(lambda n: positions.frequencies(R, base=BASE, scaling=scaling, length=n))
    for length in (1, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL + 77):
        expected = LENGTHS[name](length)
        known = positions.frequencies(R, base=BASE, scaling=scaling, length=length)
        entries(known.values, expected)
        entries(traced(length).values, expected, 2e-6)
        assert known.attention_factor == pytest.approx(float(traced(length).attention_factor))


@pytest.mark.parametrize("name", LENGTHS)
def test_the_setting_reads_the_length_from_positions_or_is_told(name):
    """The largest position of the batch decides, unless a length holds for a whole generation."""
    scaling, _ = SCALINGS[name]
    rotary = positions.Rotary(R, BASE, scaling)
    rotate = jax.jit(lambda x, p, n: rotary(x, p, length=n))
    x = np.random.default_rng(0).normal(size=(2, 3, 1, R)).astype(np.float32)
    near = np.array([[0, 1, 2], [5, 3, 4]])
    factor = positions.frequencies(R, scaling=scaling).attention_factor
    for far, length in ((0, None), (ORIGINAL - 6, None), (ORIGINAL - 5, None), (0, 3 * ORIGINAL)):
        places = near + np.array([[0], [far]])  # of the second sequence
        values = LENGTHS[name](length or places.max() + 1)
        expected = oracle.rotate(x, places, values, attention_factor=factor)
        assert_close(rotate(x, places, length), expected, 3e-3 if far else 2e-6, str(far))


def test_up_to_the_original_length_dynamic_scaling_changes_nothing():
    made = positions.frequencies(R, scaling=positions.DynamicNTK(4, 100), length=100)
    entries(made.values, oracle.plain(R))
    unscaled = [positions.Linear(1), positions.NTK(1), positions.YaRN(1, 9), positions.Llama3(1, 9)]
    for scaling in unscaled:
        made = positions.frequencies(R, scaling=scaling)
        entries(made.values, oracle.plain(R))
        assert made.attention_factor == 1


def test_ends_of_yarn_and_llama3():
    """Fast pairs stay, slow pairs are divided by the factor."""
    for scaling in (positions.YaRN(8, 8192), positions.Llama3(8, 8192)):
        ratios = oracle.plain(R) / np.asarray(
            positions.frequencies(R, scaling=scaling).values, np.float64
        )
        assert_close(ratios[[0, -1]], np.array([1, 8]), EXACT)
        assert (np.diff(ratios) >= -1e-5).all()
        assert ((ratios > 1.01) & (ratios < 7.9)).sum() >= 3


ATTENTION_FACTORS = [
    (positions.YaRN(4, 32_768), 0.1 * np.log(4) + 1),
    (positions.YaRN(40, 4096, mscale=1.0, mscale_all_dim=1.0), 1),
    (
        positions.YaRN(40, 4096, mscale=0.707, mscale_all_dim=0.5),
        (0.0707 * np.log(40) + 1) / (0.05 * np.log(40) + 1),
    ),
    (positions.YaRN(4, 4096, attention_factor=0.9, mscale=1.0, mscale_all_dim=2.0), 0.9),
    (positions.LongRoPE(SHORT, LONG, 4096, factor=32), np.sqrt(1 + np.log(32) / np.log(4096))),
    (positions.LongRoPE(SHORT, LONG, 4096, attention_factor=1.3), 1.3),
    (positions.LongRoPE(SHORT, LONG, 4096, factor=1), 1),
    (positions.Linear(4), 1),
]


@pytest.mark.parametrize(("scaling", "factor"), ATTENTION_FACTORS)
def test_attention_factors(scaling, factor):
    assert positions.frequencies(R, scaling=scaling).attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("axial", [False, True])
@pytest.mark.parametrize("size", [6, 4])
def test_the_attention_factor_multiplies_rotated_features_only(size, axial):
    x = np.random.default_rng(0).normal(size=(3, 1, 6)).astype(np.float32)
    scaling = positions.YaRN(4, 4096, attention_factor=2.0)
    given = {"sections": (1, size // 2 - 1), "axial": True} if axial else {}
    rotary = positions.Rotary(6, scaling=scaling, rotated=size, **given)
    out = rotary(x, np.zeros((3, 2) if axial else 3))
    chex.assert_trees_all_equal(out, np.concatenate([2 * x[..., :size], x[..., size:]], axis=-1))


def test_two_rotated_features_have_one_frequency_however_they_are_scaled():
    for scaling in (positions.NTK(4), positions.DynamicNTK(4, 8), positions.YaRN(4, 8)):
        made = positions.frequencies(2, scaling=scaling, length=16)
        assert made.values.shape == (1,)
        assert np.isfinite(made.values).all()


def test_scalings_are_settings():
    lists = positions.LongRoPE([1, 2], [3, 4], np.int32(100), factor=2)
    assert lists == positions.LongRoPE((1.0, 2.0), np.array([3, 4]), 100, 2.0)
    assert hash(lists) == hash(positions.LongRoPE((1.0, 2.0), (3.0, 4.0), 100, 2.0))
    assert positions.Linear(2) != positions.NTK(2)


CASES = {
    **{
        f"{name} with a factor below 1": (
            make,
            ValueError,
            rf"{name}: factor must be at least 1, got 0\.5\. It is the new length / the original",
        )
        for name, make in {
            "Linear": lambda: positions.Linear(0.5),
            "NTK": lambda: positions.NTK(0.5),
            "DynamicNTK": lambda: positions.DynamicNTK(0.5, 8),
            "YaRN": lambda: positions.YaRN(0.5, 8),
            "Llama3": lambda: positions.Llama3(0.5, 8),
            "LongRoPE": lambda: positions.LongRoPE([1.0], [1.0], 8, factor=0.5),
        }.items()
    },
    "NaN": (lambda: positions.Linear(float("nan")), ValueError, "factor must be .* got nan"),
    "text": (lambda: positions.Linear("8"), TypeError, "factor must be a number, got '8'"),
    "an array": (
        lambda: positions.NTK(jnp.ones(())),
        TypeError,
        r"NTK: factor must be a number, got an array\. It is a setting\.",
    ),
    "no original length": (
        lambda: positions.Llama3(8, 0),
        ValueError,
        "Llama3: original_length must be at least 1, got 0",
    ),
    "a fractional original length": (
        lambda: positions.YaRN(8, 4096.5),
        TypeError,
        "YaRN: original_length must be one whole number, got 4096.5",
    ),
    "ends of YaRN": (
        lambda: positions.YaRN(4, 8, beta_fast=1, beta_slow=32),
        ValueError,
        r"YaRN: beta_fast must be at least beta_slow, got 1\.0 and 32\.0",
    ),
    "half of mscale": (
        lambda: positions.YaRN(4, 8, mscale=0.7),
        ValueError,
        "mscale and mscale_all_dim must be given together, got 0.7 and None",
    ),
    "ends of Llama 3": (
        lambda: positions.Llama3(8, 8, 4, 4),
        ValueError,
        r"Llama3: low_frequency_factor must be below high_frequency_factor, got 4\.0 and 4\.0",
    ),
    "another number of factors": (
        lambda: positions.Rotary(8, scaling=positions.LongRoPE([1.0], [1.0], 8, factor=2)),
        ValueError,
        r"LongRoPE: short_factors and long_factors must have R/2 = 4 numbers, .* got 1\.",
    ),
    "factors of two lengths": (
        lambda: positions.LongRoPE([1.0], [1.0, 2.0], 8, factor=2),
        ValueError,
        "short_factors and long_factors must pair up, got 1 and 2",
    ),
    "a factor of 0": (
        lambda: positions.LongRoPE([1.0], [0.0], 8, factor=2),
        ValueError,
        r"LongRoPE: long_factors must be above 0 and finite, got 0\.0",
    ),
    "one number for all pairs": (
        lambda: positions.LongRoPE(1.0, 4.0, 8, factor=2),
        TypeError,
        "LongRoPE: short_factors must be R/2 numbers, got float",
    ),
    "no attention factor": (
        lambda: positions.LongRoPE([1.0], [1.0], 8),
        ValueError,
        "factor or attention_factor must be given, got neither",
    ),
    "base": (
        lambda: positions.frequencies(8, base=1.0),
        ValueError,
        r"frequencies: base must be above 1, got 1\.0",
    ),
    "base as text": (
        lambda: positions.Rotary(8, "1e4"),
        TypeError,
        "Rotary: base must be a number",
    ),
    "a number as scaling": (
        lambda: positions.Rotary(8, scaling=4),
        TypeError,
        r"Rotary: scaling must be a scaling or None, got int\. Write positions\.Linear\(4\)",
    ),
    "a class as scaling": (
        lambda: positions.frequencies(8, scaling=positions.YaRN),
        TypeError,
        r"got YaRN\. Create an instance: positions\.YaRN\(\.\.\.\)",
    ),
    "a configuration as scaling": (
        lambda: positions.frequencies(8, scaling={"type": "yarn"}),
        TypeError,
        r"got dict\. Write positions\.YaRN\(factor, original_length\)",
    ),
    "several lengths": (
        lambda: positions.frequencies(8, length=jnp.arange(3)),
        ValueError,
        r"length must be one number, got \[3\]\. Write jnp\.max\(length\)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_arguments_are_refused_with_the_numbers_and_the_fix(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        call()
