"""Train small residual networks on two photographs, and draw what their attention does.

    python examples/photograph_attention.py

Four networks, with squeeze-and-excitation, CBAM, coordinate attention and window attention, learn
by which multiple of 90 degrees a crop is rotated (Gidaris, Singh, Komodakis, "Unsupervised
Representation Learning by Predicting Image Rotations", ICLR 2018, arXiv:1803.07728). Then each
network is applied to a whole photograph, and photograph_attention.png shows what the attention of
one stage does.

It takes 8 minutes on 2 busy CPU cores. On held-out crops of the pagoda the accuracy is 89 % with
SE, 84 % with CBAM, 90 % with coordinate attention and 86 % with window attention; chance is 25 %.
On held-out crops of the flower, which looks similar in all rotations, it is 37 to 62 %. This is no
ranking: there are one seed and two photographs.

The picture shows the share of the features that passes the gate of SE; the spatial gate of CBAM;
the product of the two gates of coordinate attention; the weight that each place receives from its
window; and one window, where the tip of an eave attends to the roof below it. The stages were
chosen for readable pictures, and three quarters of this photograph were training data. Some gates
hardly vary: see the ranges beside the panels.

    python examples/photograph_attention.py --smoke    # 30 seconds: does it run?

The photographs come with scikit-learn: nothing is downloaded. Needs
`pip install "flax-attn[examples]"`.
"""

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_sample_image
from tqdm import tqdm

import flax_attn.nnx
from flax_attn import visualize

mpl.use("Agg")
import matplotlib.pyplot as plt

WINDOW = 8
MECHANISMS: Mapping[str, Callable[..., nnx.Module]] = {
    "SE": flax_attn.nnx.SqueezeExcite,
    "CBAM": flax_attn.nnx.CBAM,
    "coordinate attention": flax_attn.nnx.CoordinateAttention,
    "window attention": functools.partial(
        flax_attn.nnx.WindowAttention, num_heads=2, window_size=WINDOW
    ),
}
WIDTHS = (16, 32, 64, 64)  # channels of each residual stage; a wider stage halves the image
# One of four stages: early gates are finest, and late windows of 8 × 8 places cover more.
SHOWN_STAGES = {"SE": 2, "CBAM": 2, "coordinate attention": 2, "window attention": 4}
SHOWN_PLACE = (0.29, 0.48)  # the tip of an eave, as fractions of height and width
SHOWN_SCALE = 0.6  # 256 × 384 pixels, a multiple of the window at every stage
PHOTOGRAPHS = {"pagoda": "china.jpg", "flower": "flower.jpg"}
SCALES = (0.6, 0.5, 0.4, 0.3)  # of the photographs that crops are cut from
CROP = 64  # pixels
HELD_OUT = (0.45, 0.7)  # columns of the test crops, as fractions of the width
STEPS = 400
BATCH_SIZE = 64
TEST_SIZE = 512
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
WARMUP = 0.1  # of all steps
BRIGHTNESS = 0.2  # largest relative change of the brightness of a crop
SMOKE_STEPS, SMOKE_BATCH_SIZE, SMOKE_TEST_SIZE = 3, 16, 16


class Block(nnx.Module):
    """Two convolutions; attention comes after the second norm, before the residual sum."""

    def __init__(
        self, in_features: int, features: int, attention: Callable[..., nnx.Module], rngs: nnx.Rngs
    ):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, features, momentum=0.9, rngs=rngs)
        strides = 1 if in_features == features else 2
        self.conv_1 = conv(in_features, features, (3, 3), strides=strides)
        self.norm_1 = norm()
        self.conv_2 = conv(features, features, (3, 3))
        self.norm_2 = norm()
        self.attention = attention(features, rngs=rngs)
        self.shortcut = conv(in_features, features, (1, 1), strides=strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H, W, features]`, or half the height and width."""
        return nnx.relu(self.shortcut(x) + self.attention(self.features(x)))

    def features(self, x: jax.Array) -> jax.Array:
        """The input of the attention."""
        y = nnx.relu(self.norm_1(self.conv_1(x)))
        return self.norm_2(self.conv_2(y))


class Network(nnx.Module):
    def __init__(self, attention: Callable[..., nnx.Module], rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, WIDTHS[0], (3, 3), strides=2, rngs=rngs)
        sizes = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.stages = nnx.List(Block(before, after, attention, rngs) for before, after in sizes)
        self.head = nnx.Linear(WIDTHS[-1], 4, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """From images `[B, H, W, 3]` to logits `[B, 4]` of the rotations by 90 degrees."""
        return self.head(jnp.mean(self.before(images, len(WIDTHS) + 1), axis=(1, 2)))

    def before(self, images: jax.Array, stage: int) -> jax.Array:
        """The input of a stage; stages count from 1."""
        x = nnx.relu(self.stem(images - 0.5))
        for block in self.stages[: stage - 1]:
            x = block(x)
        return x


class Crops(NamedTuple):
    images: np.ndarray  # [B, CROP, CROP, 3], from 0 to 1
    turns: np.ndarray  # [B], multiples of 90 degrees


@functools.cache
def photograph(name: str, scale: float = 1) -> np.ndarray:
    """A photograph `[H, W, 3]` from 0 to 1; 427 × 640 pixels at scale 1."""
    image = load_sample_image(PHOTOGRAPHS[name]).astype(np.float32) / 255
    height, width = (round(scale * size) for size in image.shape[:2])
    return np.asarray(jax.image.resize(image, (height, width, 3), "linear"))


def training_parts() -> list[np.ndarray]:
    """The photographs without the columns of the test crops, at all scales."""
    images = [photograph(name, scale) for name in PHOTOGRAPHS for scale in SCALES]
    start, stop = HELD_OUT
    return [
        part for image in images for part in (between(image, 0, start), between(image, stop, 1))
    ]


def held_out(name: str) -> list[np.ndarray]:
    """The columns of the test crops of a photograph, at all scales."""
    return [between(photograph(name, scale), *HELD_OUT) for scale in SCALES]


def between(image: np.ndarray, start: float, stop: float) -> np.ndarray:
    width = image.shape[1]
    return image[:, round(start * width) : round(stop * width)]


def crops(parts: list[np.ndarray], count: int, rng: np.random.Generator) -> Crops:
    """Random crops, randomly mirrored, brightened and rotated."""
    parts = [part for part in parts if part.shape[1] >= CROP]
    images = np.empty((count, CROP, CROP, 3), np.float32)
    turns = rng.integers(0, 4, count, np.int32)
    for i, part in enumerate(rng.integers(0, len(parts), count)):
        y, x = (rng.integers(0, size - CROP + 1) for size in parts[part].shape[:2])
        crop = parts[part][y : y + CROP, x : x + CROP]
        images[i] = np.rot90(crop[:, :: rng.choice((-1, 1))], turns[i])
    light = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS, (count, 1, 1, 1)).astype(np.float32)
    return Crops((images * light).clip(0, 1), turns)


@nnx.jit(graph=False)  # faster calls; the model has no shared references
def learn(model: Network, optimizer: nnx.Optimizer, batch: Crops) -> jax.Array:
    @nnx.value_and_grad(graph=False)
    def loss_and_grads(model: Network) -> jax.Array:
        logits = model(batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.turns).mean()

    loss, grads = loss_and_grads(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit(graph=False)
def accuracy(model: Network, batch: Crops) -> jax.Array:
    return jnp.mean(jnp.argmax(model(batch.images), axis=-1) == batch.turns)


def train(name: str, args: argparse.Namespace) -> Network:
    model = nnx.jit(lambda: Network(MECHANISMS[name], nnx.Rngs(args.seed)))()
    warmup = int(WARMUP * args.steps)
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, warmup, args.steps)
    tx = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(args.seed)
    parts = training_parts()

    model.train()
    with tqdm(range(args.steps), desc=name) as bar:
        for _ in bar:
            loss = learn(model, optimizer, crops(parts, args.batch_size, rng))
            bar.set_postfix(loss=f"{float(loss):.3f}")
    model.eval()
    for photo in PHOTOGRAPHS:
        right = accuracy(model, crops(held_out(photo), args.test_size, np.random.default_rng(0)))
        print(f"{name}, held-out crops of the {photo}: {right:.1%} right (chance: 25 %)")
    return model


@nnx.jit(graph=False, static_argnames="stage")
def attention_input(model: Network, images: jax.Array, stage: int) -> jax.Array:
    return model.stages[stage - 1].features(model.before(images, stage))


def draw(name: str, model: Network, axes: list[plt.Axes]) -> None:
    """Draw what the attention of one stage does with the photograph of the pagoda."""
    image, stage = photograph("pagoda"), SHOWN_STAGES[name]
    features = attention_input(model, photograph("pagoda", SHOWN_SCALE)[None], stage)
    capture = nnx.capture(model.stages[stage - 1].attention, nnx.Intermediate)
    axes[0].set_title(f"{name}, stage {stage}")
    if name == "window attention":
        _, sown = capture(features, sow_weights=True)
        weights = np.asarray(sown["attention_weights"][0][0]).mean(1)  # [windows, M², M²]
        draw_windows(image, weights, features.shape[1:3], axes)
        return
    _, sown = capture(features)
    if name == "SE":
        visualize.gate(image, sown["gate"][0][0], features=features[0], ax=axes[0])
    elif name == "CBAM":
        visualize.gate(image, sown["spatial"]["gate"][0][0], ax=axes[0])
    else:
        rows, columns = sown["gate"][0]
        visualize.gate(image, (rows[0], columns[0]), ax=axes[0])


def draw_windows(
    image: np.ndarray, weights: np.ndarray, grid: tuple[int, int], axes: list[plt.Axes]
) -> None:
    """Draw the weight that each place receives from its window, and the weights of one place."""
    received = on_grid(weights.sum(1), grid)  # all 1 for uniform attention
    visualize.where(image, received, ax=axes[0])
    axes[0].images[-1].set(clim=(0, np.quantile(received, 0.99)))
    axes[0].images[-1].colorbar.set_label("received (mean 1), cut at 99 %")

    y, x = (int(at * size) for at, size in zip(SHOWN_PLACE, grid, strict=True))
    window = y // WINDOW * (grid[1] // WINDOW) + x // WINDOW
    of_place = weights[window, y % WINDOW * WINDOW + x % WINDOW].reshape(WINDOW, WINDOW)
    top, left = y - y % WINDOW, x - x % WINDOW
    rows, columns = (
        slice(start * size // places, (start + WINDOW) * size // places)
        for start, size, places in zip((top, left), image.shape, grid, strict=False)
    )
    visualize.where(image[rows, columns], of_place, queries=[(y - top, x - left)], ax=axes[1])
    axes[1].set_title("one window: the weights of the ring")


def on_grid(windows: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """From windows `[windows, M²]`, row by row, to `[h, w]`."""
    height, width = grid
    tiles = windows.reshape(height // WINDOW, width // WINDOW, WINDOW, WINDOW)
    return tiles.swapaxes(1, 2).reshape(grid)


def main() -> None:
    args = parse_args()
    figure, axes = plt.subplots(2, 3, figsize=(10, 4.6), layout="constrained")
    panels = iter(axes.flat)
    first = next(panels)
    first.imshow(photograph("pagoda").clip(0, 1))
    first.set_title("photograph")
    first.set_axis_off()
    for name in MECHANISMS:
        model = train(name, args)
        draw(name, model, list(panels) if name == "window attention" else [next(panels)])
    figure.savefig(args.output, dpi=80)
    print(f"picture saved to {args.output}")


def parse_args() -> argparse.Namespace:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default {STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("photograph_attention.png"))
    parser.add_argument("--smoke", action="store_true", help="a few steps of small batches")
    args = parser.parse_args()
    args.batch_size, args.test_size = BATCH_SIZE, TEST_SIZE
    if args.smoke:
        args.steps, args.batch_size = SMOKE_STEPS, SMOKE_BATCH_SIZE
        args.test_size = SMOKE_TEST_SIZE
        jax.config.update("jax_disable_most_optimizations", True)  # most of the time is compilation
    if args.steps < 1:
        parser.error(f"argument --steps: must be at least 1, got {args.steps}")
    if not args.output.parent.is_dir():
        parser.error(f"argument --output: no folder {args.output.parent}")
    return args


if __name__ == "__main__":
    main()
