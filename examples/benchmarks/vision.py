"""How long the vision mechanisms take and what they allocate, beside PyTorch and memory traffic.

    python examples/benchmarks/vision.py                       # two hours on 2 quiet cores
    python examples/benchmarks/vision.py --mechanism cbam      # three minutes

A mechanism runs alone, and six times in one program, as in a network, where the image stays in
place. Alone, above some 32 MB, most of the time goes to getting memory for the result. PyTorch runs
eagerly in the better of its two layouts (`--compiled`: also compiled), with our weights. If its
results differ from ours, it is not timed. A number is (median seconds of PyTorch) / (median seconds
of ours): above 1, ours is faster. Both are called several times in a row, and the first calls are
not timed.

The floor of a forward pass is the time to read the image as often as the equation needs it, by
JAX's mean, and to write it once, by a product with a number. Temporaries are what the compiled
program allocates besides arguments and results, in percent of the image. Six backward passes keep
at least five images.

On 2 cores of an AMD EPYC you will see, for large images, in terms of our time alone and six in a
program, without and with gradients:

                          float32               bfloat16
    squeeze_excite        1.0, 2.4; 2.0, 2.8    2.6, 7.0; 2.6, 3.9
    eca                   1.0, 2.2; 1.6, 2.5    2.4, 5.5; 2.2, 3.6
    global_context        1.5, 2.7; 1.9, 2.3    1.2, 1.9; 1.9, 2.5
    simam                 3.9, 5.4; 3.7, 5.4    5.1, 7.8; 3.4, 3.2
    coordinate_attention  1.8, 3.5; 3.3, 3.8    4.5, 11;  3.7, 5.1
    cbam                  1.5, 3.1; 4.3, 2.9    4.1, 7.1; 5.2

and for small images 0.7 to 3, and 0.8 to 1.9 with gradients. Compiled PyTorch takes 0.8 to 1.1 of
our time alone and 0.6 to 2.2 in a program. Two thirds of the time of a large result, in both
libraries, is that of the system to get new pages. An allocator that keeps its pages makes calls
three times as fast, and the ratios are then 0.8 to 3:

    export MALLOC_MMAP_MAX_=0 MALLOC_ARENA_MAX=1
    export MALLOC_TOP_PAD_=1073741824 MALLOC_TRIM_THRESHOLD_=8589934592

`--compile-time` measures the seconds until a ResNet-50 with a mechanism runs with gradients,
divided by those without: 1.2 for SE, eSE and ECA, 1.5 for GC, 1.6 for coordinate attention, 2.3 for
CBAM, 2.5 for non-local blocks. `--smoke` does some of it with tiny images in a minute. Needs
`pip install "flax-attn[examples]"`; PyTorch comes with `pip install "flax-attn[peers]"`.
"""

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _harness import (
    Harness,
    Program,
    as_arrays,
    difference,
    forward_and_backward,
    progress,
    say,
)
from flax import nnx
from jax import lax

import flax_attn.nnx

sys.path.append(str(Path(__file__).parents[1]))  # for `vision_models`

SHAPES = {"large": (32, 56, 56, 256), "small": (8, 112, 112, 64)}
SMOKE_SHAPES = {"large": (2, 14, 14, 32), "small": (1, 28, 28, 32)}
DTYPES = ("float32", "bfloat16")
PASSES = ("fwd", "fwd+bwd")
SERIES = {"alone": 1, "six": 6}
FORMS = ("nchw", "channels_last", "compiled")  # of PyTorch
BURST = 0.03  # seconds of calls in a row


class Mechanism(NamedTuple):
    """The number of times the image must be read, and the options of the module."""

    module: str
    reads: int
    options: Mapping[str, Any] = MappingProxyType({})


MECHANISMS = {
    "squeeze_excite": Mechanism("SqueezeExcite", 2, {"reduction": 16}),
    "effective_squeeze_excite": Mechanism("EffectiveSqueezeExcite", 2),
    "eca": Mechanism("ECA", 2),
    "global_context": Mechanism(  # by default the context is 0 at first
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
    # The time of these is that of projections and convolutions, not of memory traffic.
    "selective_kernel": Mechanism("SelectiveKernel", 2),
    "split_attention": Mechanism("SplitAttention", 2),
    "non_local": Mechanism("NonLocal", 2, {"subsample": 2}),
    "window_attention": Mechanism("WindowAttention", 1),
    "bottleneck_attention": Mechanism("BottleneckAttention", 1),
}
SMOKE = ("squeeze_excite", "cbam", "selective_kernel")
IN_TORCH = ("squeeze_excite", "eca", "global_context", "simam", "coordinate_attention")
IN_TORCH += ("channel_attention", "spatial_attention", "cbam")


class Row(NamedTuple):
    """A mechanism on an image, alone or six times in a program, forward or with gradients."""

    name: str
    shape: str
    dtype: str
    work: str
    series: str


def build(name: str, shape: tuple[int, ...], seed: int, dtype: jnp.dtype) -> nnx.Module:
    """The module in evaluation mode, with parameters in the dtype of the image."""
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


def weights_by_path(state: nnx.State) -> dict[str, np.ndarray]:
    """The weights of a module, for PyTorch."""
    flat = nnx.to_flat_state(state)
    return {".".join(map(str, path)): np.asarray(x[...], np.float32) for path, x in flat}


def floors(shape: tuple[int, ...], dtype: str, count: int) -> dict[str, Program]:
    """One read of the image, and `count` reads with a write."""
    x = jnp.ones(shape, dtype)

    def scale(x: jax.Array) -> jax.Array:
        half = jnp.asarray(0.5, x.dtype)
        if count == 1:
            return x * half
        return lax.fori_loop(0, count, lambda _, x: x * half, x)  # XLA would join products

    read = Program(lambda x: jnp.mean(x, axis=(1, 2), dtype=jnp.float32), [x])
    return {"read": read, "scale": Program(scale, [x])}


def measure(harness: Harness, row: Row, shape: tuple[int, ...], forms: Sequence[str]) -> list[str]:
    """The cells of a row."""
    dtype, count = jnp.dtype(row.dtype), SERIES[row.series]
    modules = [build(row.name, shape, seed, dtype) for seed in range(count)]
    graph, states = nnx.graphdef(modules[0]), [nnx.state(module) for module in modules]
    random = np.random.default_rng(0)
    images = [random.standard_normal(shape, np.float32) for _ in range(2)]

    def forward(x: jax.Array, states: Sequence[nnx.State]) -> jax.Array:
        for state in states:
            x = nnx.merge(graph, state)(x)
        return x

    x, cotangent = (jnp.asarray(image, dtype) for image in images)
    if row.work == "fwd":
        ours = Program(forward, [x, states])
    else:
        ours = Program(forward_and_backward(forward, 2), [cotangent, x, states])
    calls: dict[str, Callable[[], Any]] = {"ours": ours}
    expected = as_arrays(ours())[
        : 1 if row.work == "fwd" else 2
    ]  # the output, the image's gradient
    for form in forms if row.name in IN_TORCH else ():
        from _torch import vision

        weights = [weights_by_path(state) for state in states]
        program = vision(form, row.name, images, weights, row.dtype, row.work)
        if reason := difference(as_arrays(program()), expected, row.dtype):
            say(f"{' '.join(row)}, {form} is not timed: {reason}")
        else:
            calls[form] = program
    if row.work == "fwd":
        calls |= floors(shape, row.dtype, count)
    times = harness.measure(calls, burst=BURST)

    eager = [times.ratio(form, "ours") for form in FORMS[:2] if form in calls]
    above = "-"
    if row.work == "fwd":
        reads = count * (MECHANISMS[row.name].reads - 1)
        floor = reads * times.median("read") + times.median("scale")
        above = f"{times.median('ours') / floor:.2f}"
    return [
        *row,
        f"{min(eager):.2f}" if eager else "-",
        f"{times.ratio('compiled', 'ours'):.2f}" if "compiled" in calls else "-",
        above,
        f"{100 * ours.temporaries / x.nbytes:.0f} %",
        f"{1e3 * times.median('ours') / count:.1f}",
    ]


def compare(harness: Harness, options: argparse.Namespace) -> None:
    """A row for each mechanism, shape, dtype, pass and series."""
    has_torch = importlib.util.find_spec("torch") is not None and jax.default_backend() == "cpu"
    forms = FORMS[: 3 if options.compiled else 2] if has_torch and not options.no_torch else ()
    shapes = SMOKE_SHAPES if options.smoke else SHAPES
    print_row = harness.table(
        *("mechanism", "image", "dtype", "pass", "series", "PyTorch", "compiled"),
        *("ours / floor", "temporaries", "ms each"),
    )
    names = options.mechanism or (SMOKE if options.smoke else MECHANISMS)
    for cells in progress(
        itertools.product(names, options.shape, options.dtype, options.work, SERIES)
    ):
        row = Row(*cells)
        print_row(*measure(harness, row, shapes[row.shape], forms))


def compile_times(harness: Harness, options: argparse.Namespace) -> None:
    """Seconds until a ResNet-50 with each mechanism runs, divided by those without."""
    from vision_models import ATTENTION, resnet50  # in the folder above

    def seconds(attention: Callable[..., nnx.Module] | None) -> float:
        chosen = {} if attention is None else {"attention": attention}
        model = nnx.eval_shape(lambda: resnet50(num_classes=10, rngs=nnx.Rngs(0), **chosen))
        graph, state = nnx.split(model)
        # Nothing is run. A batch of 2 would compile longer, as XLA for CPUs has no library then.
        size = 64 if options.smoke else 224
        x = jax.ShapeDtypeStruct((32, size, size, 3), jnp.float32)

        def loss(state: nnx.State, x: jax.Array) -> jax.Array:
            return jnp.sum(nnx.merge(graph, state)(x))

        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(jax.grad(loss, allow_int=True)).lower(state, x).compile()
        return time.perf_counter() - start

    names, repeats = (["se"], 1) if options.smoke else (list(ATTENTION), 3)
    print_row = harness.table("ResNet-50, fwd+bwd", "compile time / without")
    seconds(None)  # the first compilation takes longer
    for name in progress(names, "compile"):
        pairs = [(seconds(ATTENTION[name]), seconds(None)) for _ in range(repeats)]
        print_row(name, f"{statistics.median(a / b for a, b in pairs):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--mechanism", nargs="+", choices=MECHANISMS, help="default: all")
    add("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    add("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    add("--pass", dest="work", nargs="+", choices=PASSES, default=list(PASSES))
    add("--compiled", action="store_true", help="compile PyTorch, too: 20 seconds more per row")
    add("--no-torch", action="store_true", help="without PyTorch")
    add("--compile-time", action="store_true", help="of a ResNet-50 with each mechanism")
    Harness.add_options(parser, seconds=6)
    options = parser.parse_args()
    harness = Harness(options)
    if not options.compile_time:
        compare(harness, options)
    if options.compile_time or options.smoke:
        compile_times(harness, options)
    harness.report()


if __name__ == "__main__":
    main()
