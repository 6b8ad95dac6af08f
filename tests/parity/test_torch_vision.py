"""Vision mechanisms equal PyTorch's: outputs, every gradient, running statistics."""

import copy
import dataclasses

import chex
import numpy as np
import pytest
import torch_reference as reference
import vision_faces as ours
from torch_comparison import (
    FACES,
    check_bfloat16,
    check_parity,
    check_sensitivity,
    precision,
    run_ours,
    values,
)
from vision_faces import vision_case

from flax_attn import vision

torch = reference.torch
pytestmark = pytest.mark.parity

SHAPES = {
    "7x5": (4, 7, 5, 24),
    "one_image": (1, 6, 9, 20),
    "one_place": (3, 1, 1, 64),
}
# A batch normalisation of the batch's statistics removes whatever was added before it.
BAM_BEFORE_NORM = tuple(f"{name}/bias" for name in ("reduce", "conv_0", "conv_1", "conv_2"))


def bam(channels, combine="add", **options):
    return {
        "function": ours.bam,
        "reference": reference.BAM(channels, reduction=4, combine=combine),
        "settings": {"reduction": 4, "combine": combine},
        "function_settings": {"combine": combine},
        **options,
    }


def released_spatial(**options):
    order = {"order": ("max", "mean")}
    return {
        "function": ours.spatial_attention,
        "reference": reference.SpatialAttention(7, norm=True, max_first=True),
        "settings": {"kernel_size": 7, **order},
        "function_settings": order,
        **options,
    }


MECHANISMS = {
    "squeeze_excite": lambda c: {
        "function": ours.squeeze_excite,
        "reference": reference.SqueezeExcite(c),
    },
    "squeeze_excite_by_linear_layers": lambda c: {
        "function": ours.squeeze_excite,
        "reference": reference.SqueezeExcite(c, linear=True),
    },
    "squeeze_excite_with_bias": lambda c: {
        "function": ours.squeeze_excite,
        "reference": reference.SqueezeExcite(c, reduction=2, bias=True),
        "settings": {"reduction": 2, "use_bias": True},
    },
    "channel_attention": lambda c: {
        "function": ours.channel_attention,
        "reference": reference.ChannelAttention(c),
    },
    "spatial_attention_3": lambda c: {
        "function": ours.spatial_attention,
        "reference": reference.SpatialAttention(3),
    },
    "spatial_attention_7": lambda c: {
        "function": ours.spatial_attention,
        "reference": reference.SpatialAttention(7),
        "settings": {"kernel_size": 7},
    },
    "spatial_attention_released": lambda c: released_spatial(),
    "spatial_attention_released_in_training": lambda c: released_spatial(train=True),
    "cbam": lambda c: {"function": ours.cbam, "reference": reference.CBAM(c)},
    "cbam_7_with_bias": lambda c: {
        "function": ours.cbam,
        "reference": reference.CBAM(c, kernel_size=7, bias=True),
        "settings": {"kernel_size": 7, "use_bias": True},
    },
    "eca": lambda c: {"function": ours.eca, "reference": reference.ECA(c)},
    "eca_5": lambda c: {
        "function": ours.eca,
        "reference": reference.ECA(c, kernel_size=5),
        "settings": {"kernel_size": 5},
    },
    "coordinate_attention": lambda c: {
        "function": ours.coordinate_attention,
        "reference": reference.CoordinateAttention(c),
    },
    "coordinate_attention_in_training": lambda c: {
        "function": ours.coordinate_attention,
        "reference": reference.CoordinateAttention(c),
        "train": True,
        "invisible": ("reduce/bias",),
    },
    "bam": lambda c: bam(c),
    "bam_in_training": lambda c: bam(c, train=True, invisible=BAM_BEFORE_NORM),
    "bam_multiplied": lambda c: bam(c, combine="multiply"),
    "simam": lambda c: {"function": ours.simam, "reference": reference.SimAM()},
}
WEIGHTED = [name for name in MECHANISMS if name != "simam"]
# Odd shapes are for mechanisms, not for each of their settings.
VARIANTS = (
    "squeeze_excite_by_linear_layers",
    "squeeze_excite_with_bias",
    "spatial_attention_3",
    "cbam_7_with_bias",
    "eca_5",
    "bam_multiplied",
)
UNDEFINED = (
    ("simam", "one_place"),  # its variance is 0 / 0
    ("bam_in_training", "one_image"),  # statistics of one pooled vector, which PyTorch refuses
)
SHAPED = [
    (mechanism, shape)
    for mechanism in MECHANISMS
    for shape in SHAPES
    if (mechanism, shape) not in UNDEFINED and (shape == "7x5" or mechanism not in VARIANTS)
]


def make(mechanism, shape="7x5"):
    return vision_case(shape=SHAPES[shape], **MECHANISMS[mechanism](SHAPES[shape][-1]))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("mechanism", "shape"), SHAPED)
def test_equals_pytorch_in_float64(mechanism, shape, face, record_property):
    check_parity(make(mechanism, shape), face, "float64", record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_equals_pytorch_in_float32(mechanism, face, record_property):
    check_parity(make(mechanism), face, "float32", record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_bfloat16_is_near_pytorch(mechanism, face, record_property):
    check_bfloat16(make(mechanism), face, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("mechanism", WEIGHTED)
def test_parity_depends_on_every_weight_and_statistic(mechanism, face, record_property):
    check_sensitivity(make(mechanism), face, record_property)


@pytest.mark.parametrize("channels", [1, 8, 24, 64, 128, 512, 2048])
def test_eca_kernel_follows_the_channels_as_in_pytorch(channels):
    (size,) = reference.ECA(channels).conv.kernel_size
    assert vision.eca_kernel_size(channels) == size


@pytest.mark.parametrize("mechanism", ["channel_attention", "spatial_attention_7", "cbam"])
def test_ties_share_the_gradient_of_a_maximum_as_in_amax(mechanism, record_property):
    case = make(mechanism)
    tied = dataclasses.replace(case, inputs=(np.round(case.inputs[0]),))
    check_parity(tied, "function", "float64", record_property)


def test_adaptive_max_pooling_gives_the_gradient_of_ties_to_one():
    # So do max_pool2d and max(dim): weights move from them, gradients at ties do not.
    image = torch.tensor(np.round(make("channel_attention").inputs[0])).permute(0, 3, 1, 2)
    image.requires_grad_()
    ours = torch.autograd.grad(image.amax(dim=(2, 3)).sum(), image)[0]
    pooled = torch.nn.functional.adaptive_max_pool2d(image, 1)
    theirs = torch.autograd.grad(pooled.sum(), image)[0]
    assert set(theirs.unique().tolist()) == {0.0, 1.0}
    assert ours.unique().numel() > 2


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_flax_keeps_the_biased_variance_where_pytorch_keeps_the_unbiased(face):
    case = make("coordinate_attention_in_training")
    batch, height, width, _ = SHAPES["7x5"]
    count = batch * (height + width)  # rows and columns are normalised as one sequence
    before = values(case.reference.norm.running_var)
    module = copy.deepcopy(case.reference).train()
    module(torch.tensor(case.inputs[0]).permute(0, 3, 1, 2))
    unbiased = values(module.norm.running_var) - 0.9 * before
    with precision(case, face, "float64"):
        updated = run_ours(case, face, "float64", np.ones(SHAPES["7x5"]))
    biased = updated["batch_stats/norm/var"] - 0.9 * before
    chex.assert_trees_all_close(biased * count / (count - 1), unbiased, rtol=1e-12)
    assert not np.allclose(biased, unbiased, rtol=1e-3)


def test_a_changed_weight_fails_the_comparison(record_property):
    case = make("squeeze_excite")

    def wrong(module, read):
        params = case.params(module, read)
        return params | {"expand": {"kernel": params["expand"]["kernel"][::-1]}}

    with pytest.raises(AssertionError, match="output"):
        check_parity(dataclasses.replace(case, params=wrong), "linen", "float32", record_property)
