"""Effective squeeze-and-excitation and global context equal timm's layers."""

import pytest
from timm_reference import timm
from torch_comparison import FACES, check_bfloat16, check_parity, check_sensitivity
from torch_reference import nn
from vision_faces import vision_case

from flax_attn import maps, vision

global_context_layers = pytest.importorskip("timm.layers.global_context", reason="timm compares")
pytestmark = pytest.mark.parity

SHAPES = {"7x5": (2, 7, 5, 24), "one_place": (3, 1, 1, 64)}
# The softmax is blind to a constant.
BLIND = ("score/bias",)


class HardSigmoid(nn.Module):
    """PyTorch's own has a derivative of 1/6 in float32, whatever the dtype: off by 3e-8."""

    def forward(self, x):
        return nn.functional.relu6(x + 3) / 6


def effective_squeeze_excite(x, w):
    return vision.effective_squeeze_excite(x, w.dense("project"))


def global_context(x, w, combine="add"):
    score = w.dense("score") if "score" in w.params else None
    norm = maps.layer_norm(**w.params["norm"])
    return vision.global_context(
        x, score, w.dense("reduce"), norm, w.dense("expand"), combine=combine
    )


def effective_squeeze_excite_case(channels):
    reference = timm.layers.EffectiveSEModule(channels)
    reference.gate = HardSigmoid()
    return {
        "function": effective_squeeze_excite,
        "module": "EffectiveSqueezeExcite",
        "reference": reference,
        "names": {"fc": "project"},
    }


def global_context_case(channels, *, combine="add", use_attention=True, **options):
    # timm's default multiplies and reduces by 8; its layer normalisation has another ε.
    add = combine == "add"
    reference = global_context_layers.GlobalContext(
        channels, use_attn=use_attention, fuse_add=add, fuse_scale=not add, rd_ratio=1 / 4
    )
    perceptron = "mlp_add" if add else "mlp_scale"
    getattr(reference, perceptron).norm.eps = 1e-5
    layers = {"fc1": "reduce", "norm": "norm", "fc2": "expand"}
    names = {f"{perceptron}.{theirs}": ours for theirs, ours in layers.items()}
    return {
        "function": global_context,
        "module": "GlobalContext",
        "reference": reference,
        "settings": {"reduction": 4, "combine": combine, "use_attention": use_attention},
        "function_settings": {"combine": combine},
        "names": {"conv_attn": "score", **names},
        **options,
    }


LAYERS = {
    "EffectiveSEModule": effective_squeeze_excite_case,
    "GlobalContext_added": lambda c: global_context_case(c, invisible=BLIND),
    "GlobalContext_multiplied": lambda c: global_context_case(
        c, combine="multiply", invisible=BLIND
    ),
    "GlobalContext_of_the_mean": lambda c: global_context_case(c, use_attention=False),
}


def make(layer, shape="7x5"):
    return vision_case(shape=SHAPES[shape], **LAYERS[layer](SHAPES[shape][-1]))


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
def test_parity_with_timm_depends_on_every_weight(layer, face, record_property):
    check_sensitivity(make(layer), face, record_property)
