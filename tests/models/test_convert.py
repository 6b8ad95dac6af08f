"""timm's weights are converted wholly or refused, and the refusal names them."""

import chex
import jax
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
    expected = np.float32(weights["layer2.0.conv1.weight"]).transpose(2, 3, 1, 0)
    chex.assert_trees_all_equal(kernel, expected)
    variance = model.stages[0][0].bn2.var[...]
    chex.assert_trees_all_equal(variance, np.float32(weights["layer1.0.bn2.running_var"]))


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
    with pytest.raises(ValueError, match=r"Unknown: stages\.0\.0\.bn1\.weight \[64\]"):
        load_timm(plain_resnet18(), twice)


def test_another_number_of_classes_is_refused_with_the_shapes(weights):
    model = nnx.eval_shape(lambda: resnet18(num_classes=7, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"fc\.weight must fit fc\.kernel \[512, 7\], got \[512, 1"
    ):
        load_timm(model, weights)


def arrays(model):
    """A copy of every parameter and statistic."""
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {"/".join(map(str, path)): np.array(place[...]) for path, place in state}


def aligned(weight, alignment):
    """In float32, at an address that `alignment` divides, and twice it does not."""
    memory = np.empty(4 * weight.size + 3 * alignment, np.uint8)
    start = (alignment - memory.ctypes.data) % (2 * alignment)
    place = memory[start : start + 4 * weight.size].view(np.float32).reshape(weight.shape)
    place[...] = weight
    return place


@pytest.mark.parametrize("alignment", [16, 64])
def test_the_model_does_not_share_memory_with_the_weights(weights, alignment):
    """On a CPU, jax takes an aligned array as it is, without a copy."""
    weights = {name: aligned(weight, alignment) for name, weight in weights.items()}
    model = plain_resnet18()
    load_timm(model, weights)
    before = arrays(model)
    for weight in weights.values():
        weight += 1
    chex.assert_trees_all_equal(arrays(model), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"more.weight": np.ones(3)},
        {"fc.weight": np.ones((7, 512))},
        {"fc.bias": np.ones(10, np.complex64)},
        {"fc.bias": None},
    ],
    ids=["more", "shape", "complex", "fewer"],
)
def test_a_refused_load_changes_nothing(weights, changes):
    model = plain_resnet18()
    other = {name: weight + 1 for name, weight in weights.items()} | changes
    other = {name: weight for name, weight in other.items() if weight is not None}
    with pytest.raises((TypeError, ValueError), match="load_timm"):
        load_timm(model, other)
    assert isinstance(model.conv1.kernel.get_value(), jax.ShapeDtypeStruct)
    load_timm(model, weights)
    before = arrays(model)
    with pytest.raises((TypeError, ValueError), match="load_timm"):
        load_timm(model, other)
    chex.assert_trees_all_equal(arrays(model), before)


@pytest.mark.parametrize(
    ("attention", "other", "refused"),
    [("gca", "gc", "mlp_scale"), ("gc", "gca", "mlp_add")],
)
def test_a_global_context_that_combines_otherwise_is_refused(attention, other, refused):
    build = CASES[f"resnet18_{attention}"].build
    model = nnx.eval_shape(lambda: build(num_classes=10, rngs=nnx.Rngs(0)))
    golden = make_golden.read()
    load_timm(model, random_weights(golden[f"resnet18_{attention}"]["shapes"]))
    with pytest.raises(ValueError, match=rf"layer1\.0\.se\.{refused}\.fc1\.weight \[8, 64, 1, 1\]"):
        load_timm(model, random_weights(golden[f"resnet18_{other}"]["shapes"]))


def test_complex_weights_are_refused(weights):
    with pytest.raises(TypeError, match=r"fc\.bias must be real, got complex64"):
        load_timm(plain_resnet18(), weights | {"fc.bias": np.ones(10, np.complex64)})


def test_other_objects_than_our_models_are_refused(weights):
    with pytest.raises(TypeError, match="model must be one of vision_models, got dict"):
        load_timm({}, weights)
    with pytest.raises(TypeError, match="model must be one of vision_models, got Linear"):
        load_timm(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), weights)


@pytest.mark.parametrize("name", ["attn_mask", "layer1.0.attn_mask"])
def test_only_whole_names_are_left_out(weights, name):
    load_timm(plain_resnet18(), weights | {name: np.ones(3)})
    with pytest.raises(ValueError, match=r"my_attn_mask \[3\]"):
        load_timm(plain_resnet18(), weights | {name.replace("attn", "my_attn"): np.ones(3)})


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
