"""timm's weights are converted wholly or refused, and the refusal names them."""

import numpy as np
import pytest
from flax import nnx

from tests.models import make_golden
from tests.models.cases import CASES, random_weights
from vision_models import load_timm, resnet18
from vision_models.convert import splits


def plain_resnet18():
    return nnx.eval_shape(lambda: resnet18(num_classes=10, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def weights():
    """Those of ResNet-18 without attention."""
    shapes = make_golden.read()["resnet18_se"]["shapes"]
    return random_weights({name: shape for name, shape in shapes.items() if ".se." not in name})


def test_a_model_is_filled_in_place(weights):
    model = plain_resnet18()
    load_timm(model, weights)
    kernel = model.stages[1][0].conv1.kernel[...]
    assert kernel.shape == (3, 3, 64, 128)
    np.testing.assert_array_equal(
        kernel[2, 1, 5, 7], np.float32(weights["layer2.0.conv1.weight"][7, 5, 2, 1])
    )
    variance = model.stages[0][0].bn2.var[...]
    np.testing.assert_array_equal(variance, np.float32(weights["layer1.0.bn2.running_var"]))


def test_weights_without_a_place_are_refused_by_name():
    weights = random_weights(make_golden.read()["resnet18_se"]["shapes"])
    with pytest.raises(ValueError, match=r"layer1\.0\.se\.fc1\.weight \[8, 64, 1, 1\]"):
        load_timm(plain_resnet18(), weights)


def test_places_without_a_weight_are_refused_by_name(weights):
    model = nnx.eval_shape(lambda: CASES["resnet18_se"].build(num_classes=10, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"stages\.0\.0\.attention\.reduce\.kernel \[64, 8\]"):
        load_timm(model, weights)


def test_two_weights_for_one_place_are_refused(weights):
    twice = {**weights, "stages.0.0.bn1.weight": weights["layer1.0.bn1.weight"]}
    with pytest.raises(ValueError, match=r"without a place: stages\.0\.0\.bn1\.weight \[64\]"):
        load_timm(plain_resnet18(), twice)


def test_another_number_of_classes_is_refused_with_the_shapes(weights):
    model = nnx.eval_shape(lambda: resnet18(num_classes=7, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"fc\.weight must fit fc\.kernel \[512, 7\], got \[512, 1"
    ):
        load_timm(model, weights)


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [((192, 3, 64), (192, 192)), ((3, 64, 192), (192, 192)), ((64, 8), (1, 1, 64, 8)), ((1,), ())],
)
def test_heads_and_axes_of_one_may_be_split_off(fine, coarse):
    assert splits(fine, coarse)


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [((8, 64), (64, 8)), ((192, 192), (192, 3, 64)), ((6, 4), (8, 3)), ((2,), (4,))],
)
def test_nothing_else_of_the_same_size_fits(fine, coarse):
    assert not splits(fine, coarse)
