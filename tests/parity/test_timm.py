"""Vision mechanisms equal timm's layers, with the arguments that make them the same mechanism."""

import pytest
import vision_faces as ours
from timm_reference import timm
from torch_comparison import FACES, check_bfloat16, check_parity, check_sensitivity
from torch_reference import nn

cbam = pytest.importorskip("timm.layers.cbam", reason="timm is the reference")
coord_attn = pytest.importorskip("timm.layers.coord_attn", reason="timm is the reference")
pytestmark = pytest.mark.parity

SHAPES = {"7x5": (2, 7, 5, 24), "one_place": (3, 1, 1, 64)}
PERCEPTRON = {"fc1": "reduce", "fc2": "expand"}
SPATIAL = {"conv.conv": "conv", "conv.bn": "norm"}
CBAM = {
    **{f"channel.{theirs}": f"channel.{name}" for theirs, name in PERCEPTRON.items()},
    **{f"spatial.{theirs}": f"spatial.{name}" for theirs, name in SPATIAL.items()},
}
COORDINATE = {
    "conv1": "reduce",
    "bn1": "norm",
    "conv_h": "expand_height",
    "conv_w": "expand_width",
}


def without_norm(module):
    """timm normalises the spatial map, the paper does not."""
    spatial = getattr(module, "spatial", module)
    spatial.conv.bn = nn.Identity()
    return module


def squeeze_excite(channels, bias):
    # timm's default has a bias, and rounds the reduced width to a multiple of 8.
    return {
        "function": ours.squeeze_excite,
        "reference": timm.layers.SEModule(channels, rd_channels=channels // 4, bias=bias),
        "settings": {"use_bias": bias},
        "names": PERCEPTRON,
    }


def channel_attention(channels, bias):
    return {
        "function": ours.channel_attention,
        "reference": cbam.ChannelAttn(channels, rd_channels=channels // 4, mlp_bias=bias),
        "settings": {"use_bias": bias},
        "names": PERCEPTRON,
    }


def spatial_attention(kernel_size, norm=True, **options):
    module = cbam.SpatialAttn(kernel_size)
    return {
        "function": ours.spatial_attention,
        "reference": module if norm else without_norm(module),
        "settings": {"kernel_size": kernel_size},
        "names": SPATIAL,
        **options,
    }


def whole_cbam(channels, norm=True, **options):
    module = cbam.CbamModule(
        channels, rd_channels=channels // 4, spatial_kernel_size=7, mlp_bias=norm
    )
    return {
        "function": ours.cbam,
        "reference": module if norm else without_norm(module),
        "settings": {"kernel_size": 7, "use_bias": norm},
        "names": CBAM,
        **options,
    }


def eca(module, **settings):
    return {"function": ours.eca, "reference": module, "settings": settings}


def coordinate_attention(channels, bias=True, **options):
    # timm's default is C / 24 wide, rounded to a multiple of 8, and has no bias.
    width = max(8, channels // 32)
    return {
        "function": ours.coordinate_attention,
        "reference": coord_attn.CoordAttn(channels, rd_channels=width, bias=bias),
        "settings": {"use_bias": bias},
        "names": COORDINATE,
        **options,
    }


LAYERS = {
    "SEModule": lambda c: squeeze_excite(c, bias=False),
    "SEModule_with_bias": lambda c: squeeze_excite(c, bias=True),
    "ChannelAttn": lambda c: channel_attention(c, bias=False),
    "ChannelAttn_with_bias": lambda c: channel_attention(c, bias=True),
    "SpatialAttn_3": lambda c: spatial_attention(3, norm=False),
    "SpatialAttn_7": lambda c: spatial_attention(7, norm=False),
    "SpatialAttn_normalised": lambda c: spatial_attention(7),
    "SpatialAttn_normalised_in_training": lambda c: spatial_attention(7, train=True),
    "CbamModule": lambda c: whole_cbam(c, norm=False),
    "CbamModule_normalised": lambda c: whole_cbam(c),
    "CbamModule_normalised_in_training": lambda c: whole_cbam(c, train=True),
    "EcaModule": lambda c: eca(timm.layers.EcaModule(c)),  # at least 3 wide, as the formula here
    "EcaModule_5": lambda c: eca(timm.layers.EcaModule(kernel_size=5), kernel_size=5),
    "CoordAttn": lambda c: coordinate_attention(c),
    "CoordAttn_without_bias": lambda c: coordinate_attention(c, bias=False),
    "CoordAttn_in_training": lambda c: coordinate_attention(
        c, train=True, invisible=("reduce/bias",)
    ),
}


def make(layer, shape="7x5"):
    return ours.vision_case(shape=SHAPES[shape], **LAYERS[layer](SHAPES[shape][-1]))


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
