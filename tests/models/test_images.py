"""Images, and sizes of images, that a model cannot take are refused in terms of the images."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vision_models import MODELS


def abstract(name, **options):
    return nnx.eval_shape(lambda: MODELS[name](num_classes=10, rngs=nnx.Rngs(0), **options))


def logits(model, *shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return nnx.eval_shape(lambda model, x: model(x), model, x)


def test_only_a_batch_of_images_of_three_channels_is_taken():
    model = abstract("resnet18")
    for shape, fix in {
        (2, 3, 256, 256): r"Transpose PyTorch's \[B, 3, H, W\]",
        (3, 256, 256): r"Transpose PyTorch's \[B, 3, H, W\]",
        (2, 256, 256, 1): "three channels",
        (256, 256, 3): r"x\[None\]",
        (256, 256): r"x\[None\]",
    }.items():
        got = ", ".join(map(str, shape))
        message = rf"^ResNet: images must be \[B, H, W, 3\], got \[{got}\]\. .*{fix}"
        with pytest.raises(ValueError, match=message):
            logits(model, *shape)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_looks_at_its_images_first(name):
    model = abstract(name)
    with pytest.raises(
        ValueError, match=rf"^{type(model).__name__}: images must be \[B, H, W, 3\]"
    ):
        model(jax.ShapeDtypeStruct((2, 3, 256, 256), jnp.float32))


ONE_SIZE = ["swin_tiny_patch4_window7_224", "test_coatnet", "vit_tiny_patch16_224", "volo_d1_224"]


@pytest.mark.parametrize("name", ONE_SIZE)
def test_images_of_another_size_are_refused(name):
    model = abstract(name, image_size=224)
    chex.assert_shape(logits(model, 2, 224, 224, 3), (2, 10))
    for height, width in ((448, 112), (256, 256)):  # the first has as many tokens
        with pytest.raises(ValueError, match=r"H = W = image_size = 224, got \[2, "):
            logits(model, 2, height, width, 3)


def test_maxvit_takes_multiples_of_its_size():
    model = abstract("test_maxvit", image_size=64)
    chex.assert_shape(logits(model, 2, 64, 128, 3), (2, 10))
    for height, width in ((64, 96), (96, 64)):
        with pytest.raises(ValueError, match=r"MaxViT: .* multiples of image_size = 64, got"):
            logits(model, 2, height, width, 3)


@pytest.mark.parametrize(
    ("name", "divisor"),
    [
        ("botnet26t_256", 32),
        ("test_coatnet", 32),
        ("test_maxvit", 32),
        ("vit_tiny_patch16_224", 16),
        ("volo_d1_224", 16),
    ],
)
def test_an_image_size_that_leaves_a_rest_is_refused(name, divisor):
    for size in (100, 0):
        match = f"image_size must be a multiple of {divisor}, got {size}"
        with pytest.raises(ValueError, match=match):
            abstract(name, image_size=size)


@pytest.mark.parametrize("size", [0, 96, 200, 230])
def test_swin_refuses_a_size_that_its_windows_do_not_cover(size):
    with pytest.raises(ValueError, match=rf"image_size .* window_size = 7 .*, got {size}.* of 224"):
        abstract("swin_tiny_patch4_window7_224", image_size=size)


def test_swin_takes_maps_smaller_than_a_window():
    model = abstract("swin_tiny_patch4_window7_224", image_size=64, window_size=8)
    chex.assert_shape(logits(model, 2, 64, 64, 3), (2, 10))
