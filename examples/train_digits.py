"""Train a small residual network with attention on handwritten digits, and draw its gates.

    python examples/train_digits.py

It takes 20 to 40 seconds on 2 CPU cores, classifies 99.3 % of the held-out digits correctly, and
draws the gates in digits_attention.png. The 1,797 digits of 8×8 pixels come with scikit-learn:
nothing is downloaded.

    python examples/train_digits.py --attention eca    # or another mechanism of flax_attn.vision
    python examples/train_digits.py --attention none   # without attention, and without a picture
    python examples/train_digits.py --attention all    # a table of all mechanisms
    python examples/train_digits.py --api linen        # the same network in Flax Linen
    python examples/train_digits.py --smoke            # 15 seconds: does it run?

`all` saves one picture per mechanism: digits_attention_cbam.png and so on. This is no ranking: the
digits are so easy that every mechanism, and none, reaches 98.9 % to 100 %, depending on the seed.
Needs `pip install "flax-attn[examples]"`.
"""

import argparse
import functools
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from flax.training import train_state
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import flax_attn.linen
import flax_attn.nnx
from flax_attn import vision

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke

ATTENTION = "cbam"  # two gates: one over channels, one over places
WIDTHS = (32, 64)  # channels of each residual stage; a wider stage halves the feature map
EPOCHS = 30
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
WARMUP = 0.1  # of all steps
MOMENTUM = 0.9  # of the batch statistics
HELD_OUT = 0.25
# Options of mechanisms whose defaults are for larger images or more channels.
SMALL: Mapping[str, dict[str, Any]] = {
    "efficient_multi_scale_attention": {"groups": 8},
    "grid_attention": {"grid_size": 4, "num_heads": 4},
    "halo_attention": {"block_size": 4, "halo_size": 1},
    "selective_kernel": {"groups": 8},
    "shuffle_attention": {"groups": 4},
    "spatial_group_enhance": {"groups": 8},
    "window_attention": {"window_size": 4, "num_heads": 4},
}
SIZED = ("bottleneck_attention",)  # its parameters depend on the size of the image
# These do not fit a residual block: one needs a second image, one returns a vector.
NOT_HERE = ("attention_gate", "attention_pool")
SPLIT_SEED = 0  # --seed changes the training, not the split
SMOKE_WIDTHS, SMOKE_EPOCHS = (16, 32), 4

# ------------------------------------------------------------------------------ mechanisms


def mechanisms() -> list[str]:
    """Names of the functions of `flax_attn.vision` that take an image x and return another."""
    return [
        name
        for name, function in inspect.getmembers(vision, inspect.isfunction)
        if not name.startswith("_")
        and not name.endswith(("_gate", "_weights"))
        and name not in NOT_HERE
        and next(iter(inspect.signature(function).parameters), None) == "x"
    ]


def module_class(namespace: Any, mechanism: str) -> type:
    """`squeeze_excite` -> `SqueezeExcite` of `flax_attn.nnx` or `flax_attn.linen`."""
    wanted = mechanism.replace("_", "")
    for name, value in inspect.getmembers(namespace, inspect.isclass):
        if name.lower() == wanted:
            return value
    raise LookupError(f"{namespace.__name__} has no module for vision.{mechanism}.")


# ------------------------------------------------------------------------------ the network, twice


class NNXBlock(nnx.Module):
    """Two convolutions; attention comes after the second norm, before the residual sum."""

    def __init__(
        self, in_features: int, features: int, attention: str, size: int, *, rngs: nnx.Rngs
    ):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, features, momentum=MOMENTUM, rngs=rngs)
        strides = 1 if in_features == features else 2
        self.conv_1 = conv(in_features, features, (3, 3), strides=strides)
        self.norm_1 = norm()
        self.conv_2 = conv(features, features, (3, 3))
        self.norm_2 = norm()
        self.attention = nnx_attention(attention, features, size, rngs)
        self.shortcut = conv(in_features, features, (1, 1), strides=strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H, W, features]`, or half as high and wide."""
        y = nnx.relu(self.norm_1(self.conv_1(x)))
        y = self.norm_2(self.conv_2(y))
        return nnx.relu(self.shortcut(x) + self.attention(y))


class LinenBlock(nn.Module):
    features: int
    attention: str
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, in_features]` to `[B, H, W, features]`, or half as high and wide."""
        conv = functools.partial(nn.Conv, self.features, use_bias=False)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not self.train, momentum=MOMENTUM
        )
        strides = 1 if x.shape[-1] == self.features else 2
        y = nn.relu(norm(name="norm_1")(conv((3, 3), strides=strides, name="conv_1")(x)))
        y = norm(name="norm_2")(conv((3, 3), name="conv_2")(y))
        y = linen_attention(self.attention, norm)(y)
        return nn.relu(conv((1, 1), strides=strides, name="shortcut")(x) + y)


class NNXNetwork(nnx.Module):
    def __init__(self, widths: tuple[int, ...], attention: str, *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, widths[0], (3, 3), rngs=rngs)
        size = 8
        for i, (before, after) in enumerate(zip((widths[0], *widths), widths, strict=False), 1):
            size = size if before == after else size // 2
            setattr(self, f"stage_{i}", NNXBlock(before, after, attention, size, rngs=rngs))
        self.head = nnx.Linear(widths[-1], 10, rngs=rngs)
        self.num_stages = len(widths)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From images `[B, 8, 8, 1]` to logits `[B, 10]`."""
        x = nnx.relu(self.stem(x))
        for i in range(1, self.num_stages + 1):
            x = getattr(self, f"stage_{i}")(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


class LinenNetwork(nn.Module):
    widths: tuple[int, ...]
    attention: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """From images `[B, 8, 8, 1]` to logits `[B, 10]`."""
        x = nn.relu(nn.Conv(self.widths[0], (3, 3), name="stem")(x))
        for i, width in enumerate(self.widths, 1):
            x = LinenBlock(width, self.attention, train, name=f"stage_{i}")(x)
        return nn.Dense(10, name="head")(jnp.mean(x, axis=(1, 2)))


def nnx_attention(mechanism: str, features: int, size: int, rngs: nnx.Rngs) -> Callable:
    """The NNX module for images of some channels, and of some size where that matters."""
    if mechanism == "none":
        return nnx.identity
    options = SMALL.get(mechanism, {})
    if mechanism in SIZED:
        options = {"input_size": (size, size), **options}
    return module_class(flax_attn.nnx, mechanism)(features, **options, rngs=rngs)


def linen_attention(mechanism: str, norm: Callable) -> Callable:
    """The Linen module; its batch normalisation, if it has one, must know the phase."""
    if mechanism == "none":
        return lambda x: x
    cls = module_class(flax_attn.linen, mechanism)
    options = SMALL.get(mechanism, {})
    if hasattr(cls, "use_running_average"):
        options = {"norm": norm, **options}
    return cls(name="attention", **options)


# ------------------------------------------------------------------------------ training, twice


class NNXTrainer:
    def __init__(
        self, widths: tuple[int, ...], attention: str, tx: optax.GradientTransformation, seed: int
    ):
        self.model = nnx.jit(lambda: NNXNetwork(widths, attention, rngs=nnx.Rngs(seed)))()
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)

    def step(self, images: np.ndarray, labels: np.ndarray) -> jax.Array:
        """Train on a batch; returns the loss."""
        self.model.train()
        return nnx_step(self.model, self.optimizer, images, labels)

    def predict(self, images: np.ndarray) -> tuple[jax.Array, Mapping[str, Any]]:
        """The logits, and what the modules have sown."""
        self.model.eval()
        return nnx_predict(self.model, images)

    def num_parameters(self) -> int:
        """The number of parameters."""
        return sum(p.size for p in jax.tree.leaves(nnx.state(self.model, nnx.Param)))


@nnx.jit(graph=False)  # 5 ms less per call; the model has no shared references
def nnx_step(
    model: NNXNetwork, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    @nnx.value_and_grad(graph=False)
    def loss_and_grads(model: NNXNetwork) -> jax.Array:
        return cross_entropy(model(images), labels)

    loss, grads = loss_and_grads(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit(graph=False)
def nnx_predict(model: NNXNetwork, images: jax.Array) -> tuple[jax.Array, Mapping[str, Any]]:
    logits, sown = nnx.capture(model, nnx.Intermediate)(images)
    return logits, nnx.to_pure_dict(sown)


class LinenState(train_state.TrainState):
    batch_stats: Any


class LinenTrainer:
    def __init__(
        self, widths: tuple[int, ...], attention: str, tx: optax.GradientTransformation, seed: int
    ):
        model = LinenNetwork(widths, attention)
        init = jax.jit(functools.partial(model.init, train=False))
        variables = init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
        self.state = LinenState.create(
            apply_fn=model.apply,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=tx,
        )

    def step(self, images: np.ndarray, labels: np.ndarray) -> jax.Array:
        """Train on a batch; returns the loss."""
        self.state, loss = linen_step(self.state, images, labels)
        return loss

    def predict(self, images: np.ndarray) -> tuple[jax.Array, Mapping[str, Any]]:
        """The logits, and what the modules have sown."""
        return linen_predict(self.state, images)

    def num_parameters(self) -> int:
        """The number of parameters."""
        return sum(p.size for p in jax.tree.leaves(self.state.params))


@jax.jit
def linen_step(
    state: LinenState, images: jax.Array, labels: jax.Array
) -> tuple[LinenState, jax.Array]:
    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        return cross_entropy(logits, labels), updated["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


@jax.jit
def linen_predict(state: LinenState, images: jax.Array) -> tuple[jax.Array, Mapping[str, Any]]:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, sown = state.apply_fn(variables, images, train=False, mutable=["intermediates"])
    return logits, sown.get("intermediates", {})


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


TRAINERS = {"nnx": NNXTrainer, "linen": LinenTrainer}

# ------------------------------------------------------------------------------ data and training


class Digits(NamedTuple):
    images: np.ndarray  # [B, 8, 8, 1], from 0 to 1
    labels: np.ndarray  # [B]


def digits() -> tuple[Digits, Digits]:
    """The digits to train on and the digits held out."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype(np.float32)
    labels = data.target.astype(np.int32)
    train_images, held_out_images, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED
    )
    return Digits(train_images, train_labels), Digits(held_out_images, held_out_labels)


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift each image by at most one pixel in each direction."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = rng.integers(0, 3, (count, 1)) + np.arange(height)
    columns = rng.integers(0, 3, (count, 1)) + np.arange(width)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def batches(data: Digits, batch_size: int, epochs: int, rng: np.random.Generator) -> Iterator:
    for _ in range(epochs):
        order = rng.permutation(len(data.labels))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            yield shifted(data.images[chosen], rng), data.labels[chosen]


class Result(NamedTuple):
    attention: str
    accuracy: float
    parameters: int
    milliseconds: float
    predictions: np.ndarray  # of the held-out digits
    sown: Mapping[str, Any]  # of the held-out digits


def train(attention: str, train_data: Digits, held_out: Digits, args: argparse.Namespace) -> Result:
    steps = args.epochs * (len(train_data.labels) // args.batch_size)
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, int(WARMUP * steps), steps)
    tx = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    widths = SMOKE_WIDTHS if args.smoke else WIDTHS
    trainer = TRAINERS[args.api](widths, attention, tx, args.seed)

    rng = np.random.default_rng(args.seed)
    seconds = []
    progress = tqdm(
        batches(train_data, args.batch_size, args.epochs, rng), attention, steps, unit="step"
    )
    for images, labels in progress:
        start = time.perf_counter()
        loss = float(trainer.step(images, labels))
        seconds.append(time.perf_counter() - start)
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)

    logits, sown = trainer.predict(held_out.images)
    predictions = np.asarray(logits).argmax(-1)
    return Result(
        attention=attention,
        accuracy=float(np.mean(predictions == held_out.labels)),
        parameters=trainer.num_parameters(),
        milliseconds=1000 * statistics.median(seconds[1:] or [math.nan]),  # the first step compiles
        predictions=predictions,
        sown=sown,
    )


def table(results: list[Result]) -> str:
    width = max(len("attention"), *(len(result.attention) for result in results))
    lines = [f"{'attention':{width}}  held-out accuracy  parameters  ms per step"]
    lines += [
        f"{r.attention:{width}}  {r.accuracy:17.2%}  {r.parameters:10,}  {r.milliseconds:11.1f}"
        for r in results
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------ the picture


class Gate(NamedTuple):
    stage: str
    name: str  # "channel" and "spatial" in CBAM, "" where there is only one
    values: np.ndarray  # [B, 1 or H, 1 or W, 1 or C]


def find_gates(sown: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Gate]:
    """All values sown as `gate`: arrays, or pairs of arrays whose product is the gate."""
    for key in sorted(sown):
        if key == "gate":
            for gate in sown[key]:
                values = functools.reduce(np.multiply, jax.tree.leaves(gate))
                stage, _, *submodules = path  # the second is "attention"
                if values.ndim == 4:
                    yield Gate(stage, " ".join(submodules), values)
                else:  # of each path [B, P, 1, 1, C] or split [B, 1, 1, P, C]
                    axis = 3 if values.shape[1] == 1 else 1
                    for i, part in enumerate(np.moveaxis(values, axis, 0), 1):
                        yield Gate(stage, " ".join([*submodules, f"part {i}"]), part)
        elif isinstance(sown[key], Mapping):
            yield from find_gates(sown[key], (*path, key))


def one_of_each(data: Digits) -> list[int]:
    """The index of the image of each digit that is closest to the mean of the digit."""
    chosen = []
    for digit in range(10):
        (places,) = np.nonzero(data.labels == digit)
        images = data.images[places]
        distances = np.square(images - images.mean(0)).sum((1, 2, 3))
        chosen.append(int(places[np.argmin(distances)]))
    return chosen


def draw(result: Result, gates: list[Gate], held_out: Digits) -> plt.Figure:
    """Draw a row of digits, and below it a row for each gate, with a colour bar."""
    chosen = one_of_each(held_out)
    rows, columns = 1 + len(gates), len(chosen)
    figure, axes = plt.subplots(
        rows,
        columns + 1,
        figsize=(columns + 1.6, rows * 1.03 + 0.55),
        width_ratios=[1] * columns + [0.1],
        layout="constrained",
        squeeze=False,
    )
    name = module_class(flax_attn.nnx, result.attention).__name__
    figure.suptitle(f"What {name} lets through ({result.accuracy:.1%} of held-out digits right)")
    for axis in axes[:, :-1].flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0, -1].set_axis_off()

    label_row(axes[0, 0], "held-out\ndigit")
    for axis, i in zip(axes[0, :-1], chosen, strict=True):
        axis.imshow(held_out.images[i, ..., 0], cmap="gray")
        color = "black" if result.predictions[i] == held_out.labels[i] else "tab:red"
        axis.set_title(f"read as {result.predictions[i]}", fontsize=9, color=color)

    for row, gate in zip(axes[1:], gates, strict=True):
        values = np.broadcast_to(gate.values, (len(held_out.labels), *gate.values.shape[-3:]))
        draw_gate(row, gate._replace(values=values[chosen]), held_out.images[chosen])
    return figure


def draw_gate(row: np.ndarray, gate: Gate, images: np.ndarray) -> None:
    """Draw a gate for each image: a heat map, or its channels if it is the same everywhere."""
    _, height, width, channels = gate.values.shape
    spatial = height > 1 or width > 1
    name = " ".join([gate.stage.replace("_", " "), gate.name]).strip()
    if spatial:
        shown = gate.values.mean(-1)
        mean = f", mean of\n{channels} channels" if channels > 1 else ""
        label_row(row[0], f"{name}\n{height}×{width}{mean}")
    else:
        order = np.argsort(-gate.values.mean((0, 1, 2)))  # the largest on top
        shown = gate.values[:, 0, 0, order, None]
        label_row(row[0], f"{name}\n{channels} channels,\nsorted")

    drawn = None
    for axis, values, image in zip(row[:-1], shown, images, strict=True):
        drawn = axis.imshow(
            values,
            cmap="inferno",
            vmin=shown.min(),
            vmax=shown.max(),
            aspect="equal" if spatial else "auto",
            interpolation="bicubic" if spatial else "nearest",
            extent=(0, 8, 8, 0),
        )
        if spatial:
            outline(axis, image[..., 0])
    bar = axis.figure.colorbar(drawn, cax=row[-1])
    bar.set_label("gate", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def outline(axis: plt.Axes, image: np.ndarray) -> None:
    """Draw the outline of the digit."""
    smooth = jax.image.resize(image, (64, 64), "cubic")
    places = (np.arange(64) + 0.5) / 8
    lines = axis.contour(places, places, smooth, levels=[0.4], colors="white", linewidths=0.8)
    lines.set_path_effects([withStroke(linewidth=1.8, foreground="black")])


def label_row(axis: plt.Axes, text: str) -> None:
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)


def save_picture(result: Result, held_out: Digits, path: Path) -> None:
    gates = list(find_gates(result.sown))
    if not gates:
        print(f"{result.attention}: no gate, no picture")
        return
    figure = draw(result, gates, held_out)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"{result.attention}: picture saved to {path}")


# ------------------------------------------------------------------------------ the command


def main() -> None:
    args = parse_args()
    train_data, held_out = digits()
    names = ["none", *mechanisms()] if args.attention == "all" else [args.attention]
    results = [train(name, train_data, held_out, args) for name in names]
    print(table(results))
    for result in results:
        path = args.output
        if args.attention == "all":
            path = path.with_stem(f"{path.stem}_{result.attention}")
        save_picture(result, held_out, path)


def parse_args() -> argparse.Namespace:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ["none", *mechanisms(), "all"]
    parser.add_argument("--attention", choices=choices, default=ATTENTION)
    parser.add_argument("--api", choices=TRAINERS, default="nnx")
    parser.add_argument("--epochs", type=int, help=f"default {EPOCHS}")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"default {BATCH_SIZE}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("digits_attention.png"))
    parser.add_argument("--smoke", action="store_true", help="a tiny network and few epochs")
    args = parser.parse_args()
    if args.epochs is None:
        args.epochs = SMOKE_EPOCHS if args.smoke else EPOCHS
    if args.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, got {args.epochs}")
    if not 1 <= args.batch_size <= (most := len(digits()[0].labels)):
        parser.error(f"argument --batch-size: must be from 1 to {most}, got {args.batch_size}")
    if not 0 <= args.seed < 2**31:
        parser.error(f"argument --seed: must be from 0 to {2**31 - 1}, got {args.seed}")
    if not args.output.parent.is_dir():
        parser.error(f"argument --output: no folder {args.output.parent}")
    if args.output.suffix[1:] not in (formats := plt.Figure().canvas.get_supported_filetypes()):
        parser.error(f"argument --output: must end in one of {', '.join(sorted(formats))}")
    return args


if __name__ == "__main__":
    main()
