"""The published speeds of attention, and which implementation they say is faster."""

import pytest

from flax_attn.attention import _registry
from flax_attn.attention._figures import FIGURES, HEAD_SIZES, compare, family

H100 = "NVIDIA H100 80GB HBM3"


def test_every_figure_has_a_source():
    for row in FIGURES:
        assert "/" in row.source or "arXiv" in row.source, row
        assert row.measured, row


def test_every_figure_is_of_an_implementation_and_is_possible():
    names = {x.name for x in (*_registry.REGISTRY, *_registry.ABSENT)}
    # The published peaks of one device in bfloat16; of 7x, that of one of the two on a chip.
    peaks = {"A100": 312, "H100": 989, "v5p": 459, "v6e": 918, "7x": 2307 / 2}
    for row in FIGURES:
        assert row.implementation in names
        assert len(row.rates) == len(HEAD_SIZES)
        rates = [rate for rate in row.rates if rate is not None]
        assert rates
        assert all(0 < rate < peaks[row.device] for rate in rates), row


def test_no_case_is_listed_twice():
    cases = [(x.device, x.implementation, x.work, x.is_causal) for x in FIGURES]
    assert len(cases) == len(set(cases))


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (H100, "H100"),
        ("NVIDIA H200", "H100"),
        ("NVIDIA GH200 480GB", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("TPU v5 lite", "v5p"),
        ("TPU v5e", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "7x"),
        ("NVIDIA A10", None),
        ("NVIDIA L4", None),
        ("TPU v4", None),
        ("cpu", None),
        (None, None),
    ],
)
def test_a_device_has_the_figures_of_its_family(device, expected):
    assert family(device) == expected


def test_two_implementations_are_compared_at_the_nearest_head_size():
    found = compare("cudnn", "blockwise", H100, 96, is_causal=True)
    assert found.head_size == 64  # as near as 128, and smaller
    assert found.ratio == 468 / 15
    found = compare("blockwise", "cudnn", "NVIDIA H200", 112, is_causal=False)
    assert found.head_size == 128
    assert found.ratio == 52 / 679


def test_a_head_size_counts_only_if_both_have_a_figure():
    found = compare("cudnn", "blockwise", "NVIDIA A100-SXM4-80GB", 256, is_causal=True)
    assert (found.head_size, found.ratio) == (128, 145 / 12)


def test_passes_are_compared_with_the_same_pass():
    found = compare("pallas_tpu", "dense", "TPU7x", 128, is_causal=True, work="backward")
    assert found.ratio == 225 / 52


def test_a_comparison_reads_as_a_reason():
    found = compare("blockwise", "cudnn", "NVIDIA H200", 128, is_causal=True)
    assert str(found) == "26 TFLOP/s beside 595 of 'cudnn' (forward on H100, D = 128, causal)"


@pytest.mark.parametrize(
    ("own", "other", "device"),
    [
        ("cudnn", "blockwise", None),
        ("cudnn", "blockwise", "cpu"),
        ("cudnn", "blockwise", "TPU v5"),
        ("pallas_tpu", "blockwise", H100),
        ("decode", "blockwise", H100),
    ],
)
def test_without_figures_of_both_nothing_is_said(own, other, device):
    assert compare(own, other, device, 128, is_causal=True) is None
