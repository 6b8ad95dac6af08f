"""The models that are compared with timm's, on weights, statistics and images from one generator.

Both sides make the weights from their names, so that only names, shapes and logits are kept.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from vision_models import ATTENTION, MODELS, load_timm, resnet18

NUM_CLASSES = 10
TOLERANCE = 1e-5  # of the largest logit
SENSITIVITY = 10 * TOLERANCE  # so much 10 % of noise on the attention's weights must do at least


class Case(NamedTuple):
    build: Callable[..., nnx.Module]
    timm_name: str
    timm_options: dict[str, Any]
    image_size: int = 64
    attention: tuple[str, ...] = ("se", "attn")  # parts of the names of its weights in timm


def resnet18_with(attention: str) -> Case:
    options = {"block_args": {"attn_layer": attention}}
    return Case(functools.partial(resnet18, attention=ATTENTION[attention]), "resnet18", options)


def of_any_size(name: str, **others) -> Case:
    return Case(MODELS[name], name, {}, **others)


def of_one_size(name: str, image_size: int, **others) -> Case:
    build = functools.partial(MODELS[name], image_size=image_size)
    return Case(build, name, {"img_size": image_size}, image_size, **others)


CASES = {
    **{f"resnet18_{attention}": resnet18_with(attention) for attention in ATTENTION},
    "botnet26t_256": of_one_size("botnet26t_256", 64, attention=("self_attn",)),
    "ecaresnet26t": of_any_size("ecaresnet26t"),
    "efficientnet_b0": of_any_size("efficientnet_b0"),
    "focalnet_tiny_srf": of_any_size("focalnet_tiny_srf", attention=("modulation",)),
    "gcresnet33ts": of_any_size("gcresnet33ts"),
    "halonet26t": of_any_size("halonet26t", image_size=256, attention=("self_attn",)),
    "lambda_resnet26t": of_any_size("lambda_resnet26t", image_size=96, attention=("self_attn",)),
    "mobilenetv3_large_100": of_any_size("mobilenetv3_large_100"),
    "mobilenetv3_small_100": of_any_size("mobilenetv3_small_100"),
    "mobilevitv2_050": of_any_size("mobilevitv2_050", image_size=128),
    "pvt_v2_b0": of_any_size("pvt_v2_b0"),
    "resnest14d": of_any_size("resnest14d", attention=("fc1", "fc2")),
    "seresnet50": of_any_size("seresnet50"),
    "skresnet18": of_any_size("skresnet18"),
    "swin_tiny_patch4_window7_224": of_one_size("swin_tiny_patch4_window7_224", 224),
    "test_coatnet": of_one_size("test_coatnet", 64),
    "test_maxvit": of_one_size("test_maxvit", 64),
    "vit_tiny_patch16_224": of_one_size("vit_tiny_patch16_224", 64),
    "volo_d1_224": of_one_size("volo_d1_224", 64, attention=("attn.attn",)),
    "xcit_nano_12_p16_224": of_any_size("xcit_nano_12_p16_224", attention=("qkv", "temperature")),
}
# By those with attention, and resnet18_se; the larger ones by test_coatnet and test_maxvit.
COVERED = {
    *("resnet18", "resnet50", "seresnet18"),
    *("coatnet_nano_rw_224", "maxvit_nano_rw_256"),
}


def generator(name: str) -> np.random.Generator:
    """One for each name: the same on every machine, as Python's own hash is not."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Every gain and variance near 1, every bias and mean near 0, outputs as large as inputs.

    With timm's initial values, the last gains of 0 above all, no logit depends on any attention.
    """
    random = generator(name)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return random.uniform(0.75, 1.25, shape)
    if leaf == "weight":
        return random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return 0.1 * random.standard_normal(shape)


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: random_weight(name, tuple(shape)) for name, shape in shapes.items()}


def images(size: int) -> np.ndarray:
    return generator("images").standard_normal((2, size, size, 3))


def our_logits(case: Case):
    """A function from timm's weights to our logits in float32."""
    build = functools.partial(case.build, num_classes=NUM_CLASSES)
    model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    model.eval()
    forward = nnx.jit(lambda model, x: model(x))

    def logits(weights: dict[str, np.ndarray]) -> np.ndarray:
        load_timm(model, weights)
        return np.asarray(forward(model, images(case.image_size).astype(np.float32)))

    return logits


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |actual − expected| / max |expected|."""
    assert actual.shape == expected.shape
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def noisy(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """10 % of noise, of either sign, on the weights of the attention."""

    def moved(name, weight):
        if not any(f".{part}." in f".{name}." for part in case.attention):
            return weight
        return weight * (1 + 0.1 * generator(f"noise on {name}").choice([-1.0, 1.0], weight.shape))

    return {name: moved(name, weight) for name, weight in weights.items()}
