"""Whole models give timm's logits, which are kept, on weights that are made again from their names.

Without PyTorch. That the kept logits are timm's is tests/parity/test_timm_models.py's to check.
"""

import numpy as np
import pytest

from tests.models import make_golden
from tests.models.cases import CASES, COVERED, TOLERANCE, difference, our_logits, random_weights
from tests.runs import some_by_default
from vision_models import MODELS

GOLDEN = make_golden.read()
# Quick ones which together have most kinds of attention: gates of channels and of places, the
# selection of kernels, halos, separable attention, windows and grids, cross-covariance attention.
QUICK = {
    *("resnet18_cbam", "skresnet18", "halonet26t"),
    *("mobilevitv2_050", "test_maxvit", "xcit_nano_12_p16_224"),
}


def test_every_model_is_compared():
    assert MODELS.keys() - CASES.keys() == COVERED


def test_every_case_has_its_logits():
    assert GOLDEN.keys() == CASES.keys()


@pytest.mark.parametrize("name", some_by_default(CASES, *QUICK))
def test_the_logits_are_timms(name, record_property):
    weights = random_weights(GOLDEN[name]["shapes"])
    found = difference(our_logits(CASES[name])(weights), np.array(GOLDEN[name]["logits"]))
    record_property("difference", found)
    assert found <= TOLERANCE
