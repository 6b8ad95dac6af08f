"""Write timm's logits, in float64, with the names and shapes of its weights to golden.json.xz.

    PYTHONPATH=examples:tests/parity python -m tests.models.make_golden

A minute; needs PyTorch and timm. `tests/parity/test_timm_models.py` checks that the file is right.
"""

import json
import lzma
import pathlib

from tests.models.cases import CASES, NUM_CLASSES, Case, images, random_weights

PATH = pathlib.Path(__file__).with_name("golden.json.xz")


def timm_model(case: Case):
    """timm's model in evaluation mode, with what timm initialises it with."""
    from timm_reference import timm

    return timm.create_model(case.timm_name, num_classes=NUM_CLASSES, **case.timm_options).eval()


def weight_shapes(model) -> dict[str, list[int]]:
    """Of all that the converter reads."""
    return {
        name: list(weight.shape)
        for name, weight in model.state_dict().items()
        if weight.is_floating_point()
    }


def timm_logits(model, weights, image_size: int, dtype: str):
    from torch_reference import torch

    tensors = {name: torch.tensor(weight) for name, weight in weights.items()}
    counters = {n: w for n, w in model.state_dict().items() if not w.is_floating_point()}
    model.to(getattr(torch, dtype)).load_state_dict(tensors | counters)
    x = torch.tensor(images(image_size), dtype=getattr(torch, dtype))
    with torch.no_grad():
        return model(x.permute(0, 3, 1, 2)).numpy()


def golden(case: Case) -> dict[str, list]:
    model = timm_model(case)
    shapes = weight_shapes(model)
    logits = timm_logits(model, random_weights(shapes), case.image_size, "float64")
    return {"shapes": shapes, "logits": [[float(f"{x:.9g}") for x in row] for row in logits]}


def read() -> dict[str, dict[str, list]]:
    return json.loads(lzma.decompress(PATH.read_bytes()))


if __name__ == "__main__":
    text = json.dumps({name: golden(case) for name, case in CASES.items()}, separators=(",", ":"))
    PATH.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(CASES)} models, {PATH.stat().st_size:,} bytes")
