"""Whole models with timm's weights give timm's logits, and these depend on the attention."""

import chex
import numpy as np
import pytest
import timm_reference  # noqa: F401  skips where there is no timm

from tests.models import make_golden
from tests.models.cases import (
    CASES,
    SENSITIVITY,
    TOLERANCE,
    difference,
    noisy,
    our_logits,
    random_weights,
)

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=CASES)
def models(request):
    """The case, random weights, timm's model, and our logits as a function of the weights."""
    case = CASES[request.param]
    model = make_golden.timm_model(case)
    return case, random_weights(make_golden.weight_shapes(model)), model, our_logits(case)


def test_logits_are_timms(models, record_property):
    case, weights, model, ours = models
    expected = make_golden.timm_logits(model, weights, case.image_size, "float32")
    found = difference(ours(weights), expected)
    record_property("difference", found)
    assert found <= TOLERANCE


def test_logits_depend_on_the_attention(models, record_property):
    case, weights, _, ours = models
    moved = difference(ours(noisy(case, weights)), ours(weights))
    record_property("difference", moved)
    assert moved > SENSITIVITY


def test_the_kept_logits_are_timms(models, request):
    case, weights, model, _ = models
    kept = make_golden.read()[request.node.callspec.params["models"]]
    assert kept["shapes"] == make_golden.weight_shapes(model)
    expected = make_golden.timm_logits(model, weights, case.image_size, "float64")
    chex.assert_trees_all_close(
        np.array(kept["logits"]), expected, rtol=0, atol=1e-8 * abs(expected).max()
    )
