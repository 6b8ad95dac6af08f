"""How long the vision mechanisms take and what they allocate, beside PyTorch and memory traffic.

    python examples/benchmarks/vision.py                           # two hours on 2 quiet cores
    python examples/benchmarks/vision.py --mechanism cbam                # three minutes

A mechanism runs alone, and six times in one program, as in a network: there the image stays where
it is, while alone the time to get memory for the result dominates above some 32 MB. PyTorch runs
eagerly in the better of its two layouts (`--compiled`: also compiled); it has our weights, and one
whose results are not ours is not timed. A number is (seconds of PyTorch / seconds of ours) in the
same round, median over the rounds: above 1 ours is faster. Both are called several times in a row,
and the first calls do not count.

The floor of a forward pass is the time to read the image as often as the equation must, by JAX's
mean, and to write it once, by a product with one number, alone and six times in one program.
Temporaries are what the compiled program allocates besides arguments and results, in percent of the
image; six backward passes keep five images at least.

On 2 cores of an AMD EPYC you will see, large images, alone and six in a program:

    squeeze_excite        float32     1.0, 2.4 × PyTorch    with gradients    2.0, 2.8
    squeeze_excite        bfloat16    2.6, 7.0                                2.6, 3.9
    eca                   float32     1.0, 2.2                                1.6, 2.5
    eca                   bfloat16    2.4, 5.5                                2.2, 3.6
    global_context        float32     1.5, 2.7                                1.9, 2.3
    global_context        bfloat16    1.2, 1.9                                1.9, 2.5
    simam                 float32     3.9, 5.4                                3.7, 5.4
    simam                 bfloat16    5.1, 7.8                                3.4, 3.2
    coordinate_attention  float32     1.8, 3.5                                3.3, 3.8
    coordinate_attention  bfloat16    4.5, 11                                 3.7, 5.1
    cbam                  float32     1.5, 3.1                                4.3, 2.9
    cbam                  bfloat16    4.1, 7.1                                5.2

and with small ones 0.7 to 3 forward, 0.8 to 1.9 with gradients; in terms of compiled PyTorch 0.8 to
1.1 alone and 0.6 to 2.2 as six, large images. These move by half with what the system takes for
new pages, two thirds of the time of a large result on both sides. With an allocator that keeps its
pages,

    export MALLOC_MMAP_MAX_=0 MALLOC_ARENA_MAX=1
    export MALLOC_TOP_PAD_=1073741824 MALLOC_TRIM_THRESHOLD_=8589934592

calls take a third, and forward, alone and six, large images in float32 and bfloat16, it is 0.9, 0.9
and 1.7, 2.1 for SE; 0.8, 0.95 and 1.7, 1.9 for ECA; 1.4, 1.3 and 1.2, 1.3 for GC; 3.0, 2.9 and 1.7,
1.5 for SimAM; 1.3, 0.8 and 2.5, 3.1 for coordinate attention; 1.4, 1.5 and 2.2, 2.2 for CBAM.

`--compile-time` compares the seconds until a ResNet-50 runs with gradients, with and without each
mechanism: SE, eSE and ECA take 1.2, GC 1.5, coordinate attention 1.6, CBAM 2.3, non-local
blocks 2.5.
`--smoke` does some of it with tiny images in a minute. Needs `pip install "flax-attn[examples]"`;
PyTorch comes with `pip install "flax-attn[peers]"`.
"""

import argparse
import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _cases import is_installed
from _comparison import disagreement, processors
from _rounds import (
    MAX_ROUNDS,
    Budget,
    Machine,
    Program,
    Table,
    burst,
    forward_and_backward,
    paired,
    say,
    take_rounds,
    typical,
)
from _torch_vision import FORMS
from _torch_vision import NAMES as IN_TORCH
from _worker import Worker, WorkerError
from flax import nnx
from jax import lax
from tqdm import tqdm

import flax_attn.nnx

sys.path.append(str(Path(__file__).parents[1]))  # for `vision_models`

SHAPES = {"large": (32, 56, 56, 256), "small": (8, 112, 112, 64)}
SMOKE_SHAPES = {"large": (2, 14, 14, 32), "small": (1, 28, 28, 32)}
DTYPES = ("float32", "bfloat16")
PASSES = ("fwd", "fwd+bwd")
SERIES = {"alone": 1, "six": 6}
NORMAL = nnx.initializers.normal()  # its default makes the context 0
SECONDS = 6.0  # of rounds per row of the table


class Mechanism(NamedTuple):
    """How many times the image must be read, and the options that the table is about."""

    module: str
    reads: int
    options: Mapping[str, Any] = MappingProxyType({})


MECHANISMS = {
    "squeeze_excite": Mechanism("SqueezeExcite", 2, {"reduction": 16}),
    "effective_squeeze_excite": Mechanism("EffectiveSqueezeExcite", 2),
    "eca": Mechanism("ECA", 2),
    "global_context": Mechanism(
        "GlobalContext", 3, {"expand_kernel_init": nnx.initializers.normal()}
    ),
    "simam": Mechanism("SimAM", 3),
    "coordinate_attention": Mechanism("CoordinateAttention", 2),
    "channel_attention": Mechanism("ChannelAttention", 2, {"reduction": 16}),
    "spatial_attention": Mechanism("SpatialAttention", 2, {"kernel_size": 7}),
    "cbam": Mechanism("CBAM", 3, {"reduction": 16, "kernel_size": 7}),
    "scse": Mechanism("SCSE", 2),
    "triplet_attention": Mechanism("TripletAttention", 2),
    "bam": Mechanism("BAM", 2),
    # Projections and convolutions, not traffic, decide about these.
    "selective_kernel": Mechanism("SelectiveKernel", 2),
    "split_attention": Mechanism("SplitAttention", 2),
    "non_local": Mechanism("NonLocal", 2, {"subsample": 2}),
    "window_attention": Mechanism("WindowAttention", 1),
    "bottleneck_attention": Mechanism("BottleneckAttention", 1),
}
SMOKE = ("squeeze_excite", "cbam", "selective_kernel")


class Row(NamedTuple):
    """A case: a mechanism on a shape, in a dtype, so many times, forward or with gradients."""

    name: str
    shape: str
    dtype: str
    work: str
    series: str


class Series:
    """Modules of one mechanism after another, with their weights and images."""

    def __init__(self, row: Row, shape: tuple[int, ...]) -> None:
        dtype = jnp.dtype(row.dtype)
        count = SERIES[row.series]
        modules = [build(row.name, shape, seed, dtype) for seed in range(count)]
        self._graph = nnx.graphdef(modules[0])
        self._states = [nnx.state(module) for module in modules]
        random = np.random.default_rng(0)
        self._images = [random.standard_normal(shape, np.float32) for _ in range(2)]
        self.backward = row.work == "fwd+bwd"
        images = [jnp.asarray(x, dtype) for x in self._images]
        work = forward_and_backward(self.whole, 2) if self.backward else self.whole
        cotangent = images[1:] if self.backward else []
        self.program = Program(work, [*cotangent, images[0], self._states])
        self.temporaries = self.program.temporaries / images[0].nbytes

    def whole(self, x: jax.Array, states: Sequence[nnx.State]) -> jax.Array:
        """One module after another."""
        for state in states:
            x = nnx.merge(self._graph, state)(x)
        return x

    def results(self) -> list[np.ndarray]:
        """The scaled image, and the gradient of the image."""
        results = self.program.results()
        leaves = [results[0], results[1][0]] if self.backward else [results]
        return [np.asarray(x, np.float32) for x in leaves]

    def inputs(self) -> dict[str, np.ndarray]:
        """For the worker: the images, and the weights by their paths."""
        weights = {
            f"{i}.{'.'.join(map(str, path))}": np.asarray(value[...], np.float32)
            for i, state in enumerate(self._states)
            for path, value in nnx.to_flat_state(state)
        }
        return {"x": self._images[0], "cotangent": self._images[1], **weights}


def build(name: str, shape: tuple[int, ...], seed: int, dtype: jnp.dtype) -> nnx.Module:
    """The module, in evaluation mode, and parameters in the dtype of the image."""
    mechanism = MECHANISMS[name]
    cls: Callable[..., nnx.Module] = getattr(flax_attn.nnx, mechanism.module)
    options: dict[str, Any] = {**mechanism.options}
    if name != "simam":  # it has no parameters
        options |= {"dtype": dtype, "param_dtype": dtype}
    if name == "bottleneck_attention":
        options["input_size"] = shape[1:3]
    module = cls(shape[-1], **options, rngs=nnx.Rngs(seed))
    module.eval()
    return module


def short(program: Program) -> Callable[[], float]:
    """Seconds of one of several calls in a row."""
    return functools.partial(burst, program.results)


def floors(shape: tuple[int, ...], dtype: str, count: int) -> dict[str, Program]:
    """One read of the image, and `count` reads with a write."""
    x = jnp.ones(shape, dtype)

    def scaled(x: jax.Array) -> jax.Array:
        half = jnp.asarray(0.5, x.dtype)
        if count == 1:
            return x * half
        return lax.fori_loop(0, count, lambda _, x: x * half, x)  # a loop: else they become one

    read = Program(lambda x: jnp.mean(x, axis=(1, 2), dtype=jnp.float32), [x])
    return {"read": read, "scale": Program(scaled, [x])}


def measure(
    row: Row,
    shape: tuple[int, ...],
    forms: Sequence[str],
    worker: Worker | None,
    machine: Machine,
    budget: Budget,
) -> list[str]:
    """The cells of a row."""
    series = Series(row, shape)
    calls: dict[str, Callable[[], float]] = {"ours": short(series.program)}
    failures = {}
    expected = series.results()
    if worker is not None and row.name in IN_TORCH:
        machine.own = {worker.process_id()}
        count = SERIES[row.series]
        for form in forms:
            try:
                worker.load(series.inputs(), dtype=row.dtype, name=row.name, count=count)
                found = worker.prepare(form, series.backward)
            except WorkerError as error:
                failures[form] = str(error)
                continue
            if reason := disagreement(found, expected, row.dtype):
                failures[form] = reason
            else:
                calls[form] = functools.partial(worker.call, form)
    with_floor = row.work == "fwd"
    if with_floor:
        calls |= {n: short(p) for n, p in floors(shape, row.dtype, SERIES[row.series]).items()}
    rounds = take_rounds(calls, machine, budget)
    for form, reason in failures.items():
        say(f"{row.name}, {form}: {reason}")

    def ratio(name: str) -> str:
        return f"{paired(rounds, name, 'ours'):.2f}" if name in calls else "-"

    eager = [paired(rounds, form, "ours") for form in FORMS[:2] if form in calls]
    count = SERIES[row.series]
    if with_floor:
        reads = count * (MECHANISMS[row.name].reads - 1)
        times = [r["ours"] / (reads * r["read"] + r["scale"]) for r in rounds]
        above = f"{statistics.median(times):.2f}"
    else:
        above = "-"
    return [
        *row,
        f"{min(eager):.2f}" if eager else "-",
        ratio("compiled"),
        above,
        f"{100 * series.temporaries:.0f} %",
        f"{1e3 * typical(rounds, 'ours') / count:.1f}",
    ]


HEADER = (
    *("Mechanism", "Image", "Dtype", "Pass", "Series"),
    *("PyTorch", "compiled", "ours / floor", "temporaries", "ms each"),
)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    for name in options.mechanism:
        for shape in options.shape:
            for dtype in options.dtype:
                for work in options.work:
                    for series in SERIES:
                        yield Row(name, shape, dtype, work, series)


def compare(options: argparse.Namespace, machine: Machine, budget: Budget) -> None:
    shapes = SMOKE_SHAPES if options.smoke else SHAPES
    wanted = is_installed("torch") and jax.default_backend() == "cpu" and not options.no_torch
    script = Path(__file__).with_name("_torch_vision.py")
    worker = Worker(script, processors()) if wanted else None
    forms = FORMS if options.compiled else FORMS[:2]
    table = Table(HEADER, (24, 5, 8, 7, 6, 7, 8, 12, 11, 7), options.markdown)
    with contextlib.ExitStack() as stack:
        if worker is not None:
            stack.enter_context(contextlib.closing(worker))
        bar = stack.enter_context(tqdm(list(rows(options)), unit="row"))
        for row in bar:
            bar.set_description(" ".join(row))
            table.row(measure(row, shapes[row.shape], forms, worker, machine, budget))
    table.close("Above 1 under PyTorch, ours is faster. Eager: the better of its two layouts.")


def compile_times(options: argparse.Namespace) -> None:
    """Seconds until a ResNet-50 with each mechanism runs, in terms of those without."""
    from vision_models import ATTENTION, resnet50  # beside this folder

    def seconds(attention: Callable[..., nnx.Module] | None) -> float:
        chosen = {} if attention is None else {"attention": attention}
        model = nnx.eval_shape(lambda: resnet50(num_classes=10, rngs=nnx.Rngs(0), **chosen))
        graph, state = nnx.split(model)
        # Nothing is run, so the batch may be a real one. (XLA for CPUs has no library for sums over
        # a batch of 2, the gradients of dense kernels, and compiles each.)
        size = 64 if options.smoke else 224
        x = jax.ShapeDtypeStruct((32, size, size, 3), jnp.float32)

        def loss(state: nnx.State, x: jax.Array) -> jax.Array:
            return jnp.sum(nnx.merge(graph, state)(x))

        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(jax.grad(loss, allow_int=True)).lower(state, x).compile()
        return time.perf_counter() - start

    names, times = (["se"], 1) if options.smoke else (list(ATTENTION), 3)
    table = Table(("Attention", "compile time / that without"), (12, 27), options.markdown)
    seconds(None)
    for name in names:
        pairs = [(seconds(ATTENTION[name]), seconds(None)) for _ in range(times)]
        table.row([name, f"{statistics.median(a / b for a, b in pairs):.2f}"])
    table.close("ResNet-50, forward and backward.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--mechanism", nargs="+", choices=MECHANISMS, help="default: all")
    add("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    add("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--pass", dest="work", nargs="+", choices=PASSES, default=list(PASSES))
    add("--seconds", type=float, default=SECONDS, help="of rounds per row of a table")
    add("--rounds", type=int, default=MAX_ROUNDS, help="at most that many")
    add("--compiled", action="store_true", help="PyTorch compiled, too: 20 seconds more a row")
    add("--no-torch", action="store_true", help="without PyTorch, installed or not")
    add("--noisy", action="store_true", help="do not wait for other processes")
    add("--markdown", action="store_true", help="print Markdown tables")
    add("--compile-time", action="store_true", help="of a ResNet-50 with each mechanism")
    add("--smoke", action="store_true", help="some of it in tiny, in a minute")
    options = parser.parse_args()
    options.mechanism = options.mechanism or (SMOKE if options.smoke else list(MECHANISMS))
    return options


def main() -> None:
    options = parse()
    jax.config.update("jax_enable_compilation_cache", False)
    machine = Machine(noisy=options.noisy or options.smoke)
    budget = Budget(2, 2) if options.smoke else Budget(3, options.rounds, options.seconds)
    if not options.compile_time:
        compare(options, machine, budget)
    if options.compile_time or options.smoke:
        compile_times(options)
    if machine.rounds:
        say(machine.report())


if __name__ == "__main__":
    main()
