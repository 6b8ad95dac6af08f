"""Selective kernels and split attention equal timm's, with the arguments that make them one."""

import dataclasses

import pytest
import vision_faces
from timm_reference import timm
from torch_comparison import FACES, check_bfloat16, check_parity, check_sensitivity
from torch_reference import nn

from flax_attn import vision

pytestmark = pytest.mark.parity

# Batch normalisation of two pooled vectors is their sign, whatever they are: eight say more.
SHAPES = {"7x5": (8, 7, 5, 32), "one_place": (8, 1, 1, 64)}
SELECTIVE = {
    **{f"paths.{i}.conv": f"conv_{i}" for i in range(3)},
    **{f"paths.{i}.bn": f"conv_norm_{i}" for i in range(3)},
    "attn.fc_reduce": "reduce",
    "attn.bn": "reduce_norm",
    "attn.fc_select": "select",
}
SPLIT = {"bn0": "conv_norm", "fc1": "reduce", "bn1": "reduce_norm", "fc2": "expand"}


def selective_kernel(channels, *, features=None, dilations=(1, 2), stride=1, groups=32, **options):
    def function(x, w):
        convs = [
            w.conv(f"conv_{i}", strides=stride, dilation=dilation, groups=groups)
            for i, dilation in enumerate(dilations)
        ]
        norms = [w.norm(f"conv_norm_{i}") for i in range(len(dilations))]
        attention = w.dense("reduce"), w.norm("reduce_norm"), w.dense("select")
        return vision.selective_kernel(x, convs, norms, *attention)

    # timm's default gives each kernel a part of the channels; it makes 3×3 kernels with dilations
    # of the sizes 3, 5, 7.
    reference = timm.layers.SelectiveKernel(
        channels,
        features,
        kernel_size=[2 * dilation + 1 for dilation in dilations],
        stride=stride,
        groups=groups,
        rd_channels=32,
        split_input=False,
    )
    settings = {"strides": stride, "groups": groups, "dilations": dilations}
    return {
        "function": function,
        "module": "SelectiveKernel",
        "reference": reference,
        "settings": {**settings, "out_features": features},
        "names": SELECTIVE,
        **options,
    }


def split_attention(channels, *, features=None, radix=2, groups=1, stride=1, **options):
    def function(x, w):
        return vision.split_attention(
            x,
            w.conv("conv", strides=stride, groups=radix * groups),
            w.norm("conv_norm"),
            w.conv("reduce", groups=groups),
            w.norm("reduce_norm"),
            w.conv("expand", groups=groups),
            radix=radix,
            groups=groups,
        )

    # Without `norm_layer` timm's has no normalisation at all.
    reference = timm.layers.SplitAttn(
        channels, features, stride=stride, radix=radix, groups=groups, norm_layer=nn.BatchNorm2d
    )
    settings = {"radix": radix, "groups": groups, "strides": stride, "out_features": features}
    return {
        "function": function,
        "module": "SplitAttention",
        "reference": reference,
        "settings": settings,
        "names": SPLIT,
        **options,
    }


LAYERS = {
    "SelectiveKernel": selective_kernel,
    "SelectiveKernel_in_training": lambda c: selective_kernel(c, train=True),
    "SelectiveKernel_of_three": lambda c: selective_kernel(c, dilations=(1, 2, 3), groups=4),
    "SelectiveKernel_wider_and_strided": lambda c: selective_kernel(
        c, features=2 * c, stride=2, groups=8
    ),
    "SplitAttn": split_attention,
    "SplitAttn_in_training": lambda c: split_attention(c, train=True, invisible=("reduce/bias",)),
    "SplitAttn_of_cardinal_groups": lambda c: split_attention(c, radix=4, groups=2),
    "SplitAttn_unsplit": lambda c: split_attention(c, radix=1),
    "SplitAttn_wider_and_strided": lambda c: split_attention(c, features=2 * c, stride=2, groups=4),
}


def make(layer, shape="7x5"):
    shape = SHAPES[shape]
    case = vision_faces.vision_case(shape=shape, **LAYERS[layer](shape[-1]))
    if "Split" not in layer:
        return case

    def params(module, read):
        """The pointwise maps stay convolutions, since they may have groups."""
        tree = case.params(module, read)
        for name in ("reduce", "expand"):
            tree[name]["kernel"] = tree[name]["kernel"][None, None]
        return tree

    return dataclasses.replace(case, params=params)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("dtype", "shape"), [("float64", "7x5"), ("float64", "one_place"), ("float32", "7x5")]
)
@pytest.mark.parametrize("layer", LAYERS)
def test_equals_timm(layer, dtype, shape, face, record_property):
    check_parity(make(layer, shape), face, dtype, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_bfloat16_is_near_timm(layer, face, record_property):
    check_bfloat16(make(layer), face, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_parity_with_timm_depends_on_every_weight_and_statistic(layer, face, record_property):
    check_sensitivity(make(layer), face, record_property)
