"""How far a result may be from its float64 oracle, relative to the oracle's largest entry."""

import numpy as np

FORWARD = {"float64": 1e-13, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
# Gradients pass the data twice; those of half-precision inputs are themselves rounded.
GRADIENT = {"float64": 1e-12, "float32": 5e-6, "float16": 4e-3, "bfloat16": 3e-2}
# Central differences of a float64 oracle: truncation ε² and rounding 1e-16 / ε at ε = 3e-6.
FINITE_DIFFERENCE = 1e-8


def assert_close(actual, expected, relative, message=""):
    """|actual − expected| ≤ relative · max |expected|, with equal infinities and shapes."""
    actual, expected = (np.asarray(a).astype(np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape, (message, actual.shape, expected.shape)
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(actual[infinite], expected[infinite], err_msg=message)
    difference = np.abs(actual[~infinite] - expected[~infinite])
    largest = np.max(np.abs(expected[~infinite]), initial=0.0)
    assert not np.isnan(difference).any(), f"{message}: NaN"
    worst = np.max(difference, initial=0.0)
    assert worst <= relative * max(largest, 1e-30), f"{message}: {worst} > {relative} * {largest}"
