"""Which cases belong to the default run, and which to the long one (conformance)."""

import pytest

long = pytest.mark.conformance


def some_by_default(values, *chosen):
    """The values as parameters; those that are not among the chosen only in the long run."""
    values = list(values)
    assert set(chosen) <= set(values), (chosen, values)
    return [pytest.param(value, marks=() if value in chosen else long) for value in values]
