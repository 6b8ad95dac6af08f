"""Load the weights of a timm model into our model, and compare the logits.

    python examples/compare_with_timm.py seresnet50

Weights and statistics are random. It takes 10 to 30 seconds on 2 CPU cores, and prints a difference
of 7e-7 of the largest logit.

    python examples/compare_with_timm.py seresnet50 --pretrained    # downloads timm's weights

The models are those of `vision_models.MODELS`. Needs `pip install torch torchvision timm`.
"""

import argparse

import numpy as np
import torch
from flax import nnx

from vision_models import MODELS, load_timm

try:
    import timm
except RuntimeError:  # torchvision for CUDA fails beside torch for CPUs, which lacks its operators
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import timm

BATCH_SIZE = 2


def randomize(model: torch.nn.Module) -> None:
    """Randomise all weights, as timm initialises the last scale of a block to 0, which hides it."""
    for name, weight in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and weight.ndim == 1):
            weight.uniform_(0.75, 1.25)
        elif name.endswith("weight"):
            weight.normal_(0, weight[0].numel() ** -0.5)
        elif weight.is_floating_point():
            weight.normal_(0, 0.1)


def compare(name: str, pretrained: bool) -> tuple[np.ndarray, np.ndarray]:
    """The logits of timm and of our model, on the same random images."""
    theirs = timm.create_model(name, pretrained=pretrained).eval()
    if not pretrained:
        randomize(theirs)

    ours = nnx.eval_shape(lambda: MODELS[name](rngs=nnx.Rngs(0)))  # filled below
    load_timm(ours, theirs.state_dict())
    ours.eval()

    _, height, width = theirs.default_cfg["input_size"]
    images = np.random.default_rng(0).standard_normal((BATCH_SIZE, height, width, 3), np.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    return expected, np.asarray(nnx.jit(lambda model, x: model(x))(ours, images))


def main() -> None:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    args = parser.parse_args()
    expected, actual = compare(args.model, args.pretrained)
    largest = np.max(np.abs(expected))
    difference = np.max(np.abs(actual - expected)) / largest
    print(f"{args.model}: largest logit {largest:.3g}, largest difference {difference:.1e} of it")


if __name__ == "__main__":
    main()
