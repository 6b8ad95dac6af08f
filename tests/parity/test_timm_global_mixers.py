"""The non-local block equals timm's, with the arguments that make them the same block."""

import pytest
import vision_faces as ours
from timm_reference import timm
from torch_comparison import FACES, check_bfloat16, check_parity, check_sensitivity

from flax_attn import vision

pytestmark = pytest.mark.parity

SHAPES = {"7x5": (2, 7, 5, 24), "one_place": (3, 1, 1, 64)}
NAMES = {"t": "query", "p": "key", "g": "value", "z": "out"}
# It adds the same to all scores of a row.
KEY_BIAS = "key/bias"


def non_local(x, w, scale=None):
    projections = (w.dense(name) for name in ("query", "key", "value", "out"))
    return vision.non_local(x, *projections, norm=w.norm("norm"), scale=scale)


def as_in_the_paper(channels, train=False):
    # timm scales by 1/√C, the released code by 1/√R.
    module = timm.layers.NonLocalAttn(channels, rd_channels=channels // 2)
    module.scale = (channels // 2) ** -0.5
    # Weights sum to 1, so that both biases add a constant, which the batch's mean takes away.
    constants = ("value/bias", "out/bias") if train else ()
    return {"reference": module, "train": train, "invisible": (KEY_BIAS, *constants)}


def as_in_timm(channels):
    # An eighth of the channels, rounded to a multiple of 8.
    settings = {"scale": channels**-0.5}
    return {
        "reference": timm.layers.NonLocalAttn(channels),
        "settings": {"hidden_features": 8, **settings},
        "function_settings": settings,
        "invisible": (KEY_BIAS,),
    }


LAYERS = {
    "NonLocalAttn": as_in_the_paper,
    "NonLocalAttn_in_training": lambda c: as_in_the_paper(c, train=True),
    "NonLocalAttn_as_in_timm": as_in_timm,
}


def make(layer, shape="7x5"):
    options = LAYERS[layer](SHAPES[shape][-1])
    return ours.vision_case(
        non_local, shape=SHAPES[shape], module="NonLocal", names=NAMES, **options
    )


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
