"""Gather-excite equals timm's layer, after what timm 1.0.31 fails to build is put into it."""

import functools

import pytest
from timm_reference import timm
from torch_comparison import FACES, check_bfloat16, check_parity, check_sensitivity
from torch_reference import nn
from vision_faces import vision_case

from flax_attn import maps, vision

pytestmark = pytest.mark.parity

SHAPES = {"7x5": (3, 7, 5, 16), "9x12": (2, 9, 12, 32)}
LAST = 3  # of the convolutions' numbers in timm
NAMES = {
    **{f"gather.conv{i + 1}": f"conv_{i}" for i in range(LAST)},
    **{f"gather.norm{i + 1}": f"norm_{i}" for i in range(LAST)},
    "mlp.fc1": "reduce",
    "mlp.fc2": "expand",
}


def depthwise(channels, kernel_size, **options):
    return nn.Conv2d(channels, channels, kernel_size, groups=channels, bias=False, **options)


def gathering(channels, size, extent):
    """The layers of timm's `gather`; its kernel over the whole image would be padded."""
    layers = nn.Sequential()
    if extent == 0:
        layers.add_module("conv1", depthwise(channels, size))
        layers.add_module("norm1", nn.BatchNorm2d(channels))
        return layers
    count = extent.bit_length() - 1
    for i in range(1, count + 1):
        conv = functools.partial(timm.layers.create_conv2d, depthwise=True)
        layers.add_module(f"conv{i}", conv(channels, channels, kernel_size=3, stride=2))
        layers.add_module(f"norm{i}", nn.BatchNorm2d(channels))
        if i < count:
            layers.add_module(f"act{i}", nn.ReLU())
    return layers


def gather_excite(x, w, extent):
    """With `extent` 0 for the whole image, as in timm."""
    numbers = [i for i in range(LAST) if f"conv_{i}" in w.params]
    settings = {"strides": 2} if extent else {"padding": 0}
    convs = [maps.depthwise_conv(**w.params[f"conv_{i}"], **settings) for i in numbers]
    norms = [w.norm(f"norm_{i}") for i in numbers]
    perceptron = [w.dense(name) for name in ("reduce", "expand") if name in w.params]
    mean = None if convs else extent or None
    return vision.gather_excite(x, convs, norms, *perceptron, extent=mean)


def case(shape, extent, conv=False, perceptron=False, train=False):
    _, *size, channels = SHAPES[shape]
    # timm builds neither convolutions nor a perceptron: it passes `*dd` for `**dd`.
    module = timm.layers.GatherExcite(channels, extent=extent, use_mlp=False)
    if conv:
        module.gather = gathering(channels, size, extent)
    if perceptron:
        module.mlp = timm.layers.ConvMlp(channels, channels // 4)
        if conv:  # as in the released networks, not in timm
            module.gather.add_module("last_act", nn.ReLU())
    settings = {
        "extent": extent or (tuple(size) if conv else None),
        "gather": "conv" if conv else "mean",
        "reduction": 4 if perceptron else None,
    }
    return vision_case(
        gather_excite,
        module,
        SHAPES[shape],
        module="GatherExcite",
        settings=settings,
        function_settings={"extent": extent},
        names=NAMES,
        train=train,
    )


EXTENTS = (0, 2, 4, 8)
FREE = {f"mean_{e}": {"extent": e} for e in EXTENTS}
LEARNED = {
    **{f"mean_{e}_perceptron": {"extent": e, "perceptron": True} for e in EXTENTS},
    **{f"conv_{e}": {"extent": e, "conv": True} for e in EXTENTS},
    "conv_0_perceptron": {"extent": 0, "conv": True, "perceptron": True},
    "conv_4_perceptron": {"extent": 4, "conv": True, "perceptron": True},
    "conv_4_in_training": {"extent": 4, "conv": True, "train": True},
    "conv_0_in_training": {"extent": 0, "conv": True, "train": True},
}
LAYERS = {**FREE, **LEARNED}


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("dtype", "shape"), [("float64", "7x5"), ("float64", "9x12"), ("float32", "7x5")]
)
@pytest.mark.parametrize("layer", LAYERS)
def test_equals_timm(layer, dtype, shape, face, record_property):
    check_parity(case(shape, **LAYERS[layer]), face, dtype, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LAYERS)
def test_bfloat16_is_near_timm(layer, face, record_property):
    check_bfloat16(case("7x5", **LAYERS[layer]), face, record_property)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("layer", LEARNED)
def test_parity_with_timm_depends_on_every_weight_and_statistic(layer, face, record_property):
    check_sensitivity(case("7x5", **LAYERS[layer]), face, record_property)
