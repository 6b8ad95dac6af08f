"""How long `dot_product_attention` takes and what it allocates, beside other libraries.

    python examples/benchmarks/attention.py                      # some 20 minutes on 2 quiet cores
    python examples/benchmarks/attention.py --case causal-512    # one case, in a minute
    python examples/benchmarks/attention.py --markdown --plot attention.png

The others are `jax.nn` and Flax, and with `pip install "flax-attn[peers]"` tokamax (`xla_chunked`)
and PyTorch (`scaled_dot_product_attention`, and compiled `flex_attention`, which needs g++ and has
no backward pass on CPUs). Each is called in its own layout, with the arguments that its users
choose. PyTorch needs a dense mask for windows and documents, which is made beforehand; JAX makes it
in the compiled function.

A number is (median seconds of the other library) / (median seconds of ours): above 1, ours is
faster. The functions are called in turn in one process, and a round begins only when other
processes leave the machine alone (`--noisy`: at once). A backward pass takes a given cotangent and
returns those of query, key and value. Temporaries are what the compiled program allocates besides
arguments and results. A library whose results differ from ours is not timed.

On 2 cores of an Intel Xeon with AMX you will see, forward and backward, float32 and bfloat16:

    causal-1024     4.1, 5.1 × jax.nn       5, 15 MiB of temporaries (jax.nn: 264, 336)
    causal-4096     7.0, 9.4 × jax.nn      11, 30 MiB (2064, 2592)
    packed-4096     9.2, 12 × jax.nn       10, 26 MiB (2064, 2592)
    grouped-4096    6.4, 8.2 × jax.nn      11, 24 MiB (2570, 2834)
    window-8192     7.7, 5.9 × PyTorch      7, 26 MiB
    full-197        1.5, 1.4 × jax.nn

PyTorch has fused kernels for these cores. It takes 0.5 to 0.8 of our time if every key is visible,
and 1.5 to 2.2 times our time with packed documents.

The cost of our own choices, each in one to five minutes:

    python examples/benchmarks/attention.py --generality      # masks and score modifiers
    python examples/benchmarks/attention.py --growth          # time and memory over the length
    python examples/benchmarks/attention.py --forward-mode    # jvp
    python examples/benchmarks/attention.py --compile         # seconds until it runs
    python examples/benchmarks/attention.py --threshold       # dense or blockwise

`--smoke` does all of it with tiny shapes in less than a minute, without tokamax and PyTorch.
`--length` and `--head-dim` change the sizes. Needs `pip install "flax-attn[examples]"`.
"""

import argparse
import functools
import importlib.util
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _attention_costs import PARTS
from _cases import CASES, DTYPES, LIBRARIES, Case, make_inputs, make_program
from _harness import PASSES, Harness, as_arrays, difference, mebibytes, progress, say

PEERS = (*(name for name in LIBRARIES if name != "ours"), "torch", "flex")
MEMORY = 6e9  # bytes of temporaries that the backward pass of a peer may take without --slow


class Row(NamedTuple):
    case: str
    dtype: str
    work: str
    ratios: dict[str, float]


def installed(peers: Sequence[str]) -> list[str]:
    """The peers that can be measured here; says why the others cannot."""
    reasons = {}
    if importlib.util.find_spec("tokamax") is None:
        reasons["tokamax"] = "tokamax is not installed"
    if importlib.util.find_spec("torch") is None:
        reasons["torch"] = reasons["flex"] = "PyTorch is not installed"
    elif jax.default_backend() != "cpu":
        reasons["torch"] = reasons["flex"] = f"JAX runs on a {jax.default_backend()}"
    elif shutil.which("g++") is None:
        reasons["flex"] = "g++ is not installed"
    for name in peers:
        if name in reasons:
            say(f"Without {name}: {reasons[name]}.")
    return [name for name in peers if name not in reasons]


def build(name: str, case: Case, inputs: dict[str, np.ndarray], dtype: str, work: str) -> Any:
    """The program of a library."""
    if name in LIBRARIES:
        return make_program(functools.partial(LIBRARIES[name], case), inputs, dtype, work)
    from _torch import attention

    return attention(name, case, inputs, dtype, work)


def compare(harness: Harness, cases: Sequence[Case], peers: Sequence[str]) -> list[Row]:
    """A row for each case, dtype and pass."""
    options = harness.options
    jax_names = ["ours", *(name for name in peers if name in LIBRARIES)]
    header = ["case", "dtype", "pass", *(f"{name} / ours" for name in peers), "ours ms"]
    print_row = harness.table(*header, *(f"MiB {name}" for name in jax_names))
    steps = itertools.product(cases, options.dtype or DTYPES, options.work or PASSES)
    limit = 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rows = []
    for case, dtype, work in progress(steps, "compare"):
        inputs, sizes, calls = make_inputs(case), {}, {}
        for name in ("ours", *peers):
            if name == "flex" and (not case.flex or work == "fwd+bwd"):
                continue
            reason: str | None = "it needs too much memory"
            most = limit if work == "fwd" or options.slow or name == "ours" else min(limit, MEMORY)
            try:
                program = build(name, case, inputs, dtype, work)
                sizes[name] = getattr(program, "temporaries", 0)
                if sizes[name] < most:
                    arrays = as_arrays(program())
                    expected = arrays if name == "ours" else expected
                    reason = difference(arrays, expected, dtype)
            except Exception as error:  # the library may decline, or run out of memory
                if name == "ours":
                    raise
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if reason:
                say(f"{case.name} {dtype} {work}, {name} is not timed: {reason}")
            else:
                calls[name] = program
        times = harness.measure(calls)
        ratios = {name: times.ratio(name, "ours") for name in peers if name in calls}
        cells = [case.name, dtype, work]
        cells += [f"{ratios[name]:.2f}" if name in ratios else "-" for name in peers]
        cells += [times.milliseconds("ours")]
        print_row(*cells, *(mebibytes(sizes[n]) if n in sizes else "-" for n in jax_names))
        rows.append(Row(case.name, dtype, work, ratios))
    return rows


def plot(rows: Sequence[Row], peers: Sequence[str], path: Path) -> None:
    """A group of bars per case and a panel per dtype and pass; bars go up where ours is faster."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((row.dtype, row.work) for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    size = (2 + len(cases) * (len(peers) + 1) * 0.2, 2.6 * len(panels))
    figure, axes = plt.subplots(
        len(panels), sharex=True, sharey=True, figsize=size, squeeze=False, layout="constrained"
    )
    width = 1 / (len(peers) + 1)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for index, peer in enumerate(peers):
            shown = [r for r in rows if (r.dtype, r.work) == panel and peer in r.ratios]
            places = [cases.index(r.case) + (index - (len(peers) - 1) / 2) * width for r in shown]
            heights = [r.ratios[peer] - 1 for r in shown]
            axis.bar(places, heights, bottom=1, width=width, color=f"C{index}", label=peer)
        axis.set(yscale="log", title=", ".join(panel), ylabel="time / ours")
        axis.axhline(1, color="black", linewidth=1)
        axis.grid(axis="y", alpha=0.3)
    axes[-1, 0].set_xticks(range(len(cases)), cases, rotation=20, ha="right")
    axes[0, 0].legend(ncols=len(peers), fontsize=8)
    figure.savefig(path, dpi=150)
    say(f"Wrote {path}.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    names = [case.name for case in CASES]
    add("--case", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    add("--dtype", nargs="+", choices=DTYPES, help="default: both; float32 for our own costs")
    add("--pass", dest="work", nargs="+", choices=PASSES, help="default: both")
    add("--peer", nargs="*", choices=PEERS, help="default: all that are installed")
    add("--length", type=int, help="number of tokens T of all cases")
    add("--head-dim", type=int, help="head size D of all cases")
    add("--slow", action="store_true", help=f"peers may take more than {MEMORY / 1e9:.0f} GB")
    add("--plot", type=Path, metavar="FILE", help="write a bar chart of the comparison")
    for name, part in PARTS.items():
        add(f"--{name}", action="store_true", help=part.__doc__)
    Harness.add_options(parser)
    options = parser.parse_args()
    if options.length is not None and options.length < 16:
        parser.error(f"--length must be at least 16, got {options.length}.")
    return options


def main() -> None:
    options = parse()
    harness = Harness(options)
    cases = {case.name: case.smoke() if options.smoke else case for case in CASES}
    cases = {name: c.resized(options.length, options.head_dim) for name, c in cases.items()}
    parts = [name for name in PARTS if getattr(options, name.replace("-", "_"))]
    works = options.work or (PASSES[1:] if options.smoke else PASSES)
    if not parts:
        default = ("jax.nn", "flax") if options.smoke else PEERS
        peers = installed(default if options.peer is None else options.peer)
        names = options.case or (["packed-4096"] if options.smoke else cases)
        rows = compare(harness, [cases[name] for name in names], peers)
        if options.plot and peers:
            plot(rows, peers, options.plot)
    for name in parts or (PARTS if options.smoke else ()):
        for dtype in options.dtype or ["float32"]:
            PARTS[name](harness, cases, dtype, works)
    harness.report()


if __name__ == "__main__":
    main()
