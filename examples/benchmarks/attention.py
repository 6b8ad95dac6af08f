"""How long `dot_product_attention` takes and what it allocates, beside its peers.

    python examples/benchmarks/attention.py                      # some 20 minutes on 2 quiet cores
    python examples/benchmarks/attention.py --case causal-512    # one case, in a minute
    python examples/benchmarks/attention.py --markdown --plot attention.png

Peers: `jax.nn`, Flax, and with `pip install "flax-attn[peers]"` tokamax (`xla_chunked`) and PyTorch
(`scaled_dot_product_attention`, and compiled `flex_attention`, which needs g++ and has no backward
pass on CPUs). Each has the layout, and the way to say which keys are seen, that its users choose:
where PyTorch knows no window and no documents it gets a dense mask, made beforehand; JAX makes such
a mask in the compiled function.

A number is (seconds of the peer / seconds of ours) in the same round, median over the rounds: above
1 ours is faster. For PyTorch, which any other process disturbs more, the ratio of the fastest calls
follows in brackets. In each round the functions are called in turn (A B C, next C B A), and it
begins only when other processes leave the machine alone (`--noisy`: at once). A backward pass takes
a given cotangent and gives those of query, key and value. Temporaries are what the compiled program
allocates besides arguments and results. A peer whose results are not ours is not timed.

On 2 cores of an Intel Xeon with AMX you will see, forward and backward, float32 and bfloat16:

    causal-1024     4.1, 5.1 × jax.nn       5, 15 MiB of temporaries (jax.nn: 264, 336)
    causal-4096     7.0, 9.4 × jax.nn      11, 30 MiB (2064, 2592)
    packed-4096     9.2, 12 × jax.nn       10, 26 MiB (2064, 2592)
    grouped-4096    6.4, 8.2 × jax.nn      11, 24 MiB (2570, 2834)
    window-8192     7.7, 5.9 × PyTorch      7, 26 MiB
    full-197        1.5, 1.4 × jax.nn

PyTorch, which has fused kernels for these cores, takes 0.5 to 0.8 of our time where every key is
seen, and 1.5 to 2.2 times ours with packed documents.

What our own choices cost, each part in one to five minutes:

    python examples/benchmarks/attention.py --generality      # masks and score modifiers
    python examples/benchmarks/attention.py --growth          # over length; memory
    python examples/benchmarks/attention.py --forward-mode    # jvp
    python examples/benchmarks/attention.py --compile         # seconds until it runs
    python examples/benchmarks/attention.py --threshold       # all scores at once, or in blocks

`--smoke` does all of it with tiny shapes in less than a minute, and without tokamax and PyTorch.
`--length` and `--head-dim` give the cases other sizes. Needs `pip install "flax-attn[examples]"`.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
from _cases import CASES, SMOKE
from _comparison import MEMORY, PEERS, Comparison, installed_peers, plot, print_comparison
from _own_costs import compile_times, forward_mode, generality, growth, threshold
from _rounds import MAX_ROUNDS, SECONDS, Budget, Machine, say

DTYPES = ("float32", "bfloat16")
PASSES = ("fwd", "fwd+bwd")
PARTS = ("generality", "growth", "forward_mode", "compile", "threshold")
FORWARD_MODE = ("causal-4096", "packed-4096", "window-8192")  # cases
SMOKE_BUDGET = Budget(fewest=2, most=2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    names = [case.name for case in CASES]
    add("--case", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    add("--dtype", nargs="+", choices=DTYPES, help="default: both; float32 for our own costs")
    add("--pass", dest="work", nargs="+", choices=PASSES, help="default: both")
    add("--peer", nargs="*", choices=PEERS, help="default: all that are installed")
    add("--length", type=int, help="tokens T, in place of the case's")
    add("--head-dim", type=int, help="features of a head D, in place of the case's")
    add("--rounds", type=int, default=MAX_ROUNDS, help="at most that many")
    add("--seconds", type=float, default=SECONDS, help="of rounds per row of a table")
    add("--noisy", action="store_true", help="do not wait for other processes")
    add("--slow", action="store_true", help=f"peers may take more than {MEMORY / 1e9:.0f} GB")
    add("--smoke", action="store_true", help="everything in tiny, in less than a minute")
    add("--markdown", action="store_true", help="print Markdown tables")
    add("--plot", type=Path, metavar="FILE", help="a bar chart of the comparison")
    add("--generality", action="store_true", help="what masks and score modifiers cost")
    add("--growth", action="store_true", help="time and memory over the length")
    add("--forward-mode", action="store_true", help="what a jvp costs")
    add("--compile", action="store_true", help="seconds until it runs")
    add("--threshold", action="store_true", help="short sequences by each implementation")
    options = parser.parse_args()
    if options.length is not None and options.length < 16:
        parser.error(f"--length must be at least 16, got {options.length}.")
    return options


def main() -> None:
    options = parse()
    jax.config.update("jax_enable_compilation_cache", False)
    machine = Machine(noisy=options.noisy or options.smoke)
    budget = SMOKE_BUDGET if options.smoke else Budget(most=options.rounds, seconds=options.seconds)
    names = options.case or (SMOKE if options.smoke else [c.name for c in CASES])
    cases = {c.name: c.smoke() if options.smoke else c for c in CASES}
    cases = {name: c.resized(options.length, options.head_dim) for name, c in cases.items()}
    parts = [part for part in PARTS if getattr(options, part)]
    own_dtypes = options.dtype or ["float32"]
    own_work = options.work or (PASSES[1:] if options.smoke else PASSES)
    options.dtype, options.work = options.dtype or DTYPES, options.work or PASSES
    shared: dict[str, Any] = {"machine": machine, "budget": budget, "markdown": options.markdown}

    if not parts:
        wanted = PEERS if options.peer is None else options.peer
        if options.smoke and options.peer is None:
            wanted = ("jax.nn", "flax")
        peers = installed_peers(wanted)
        comparison = Comparison(peers, machine, budget, options.slow)
        rows = comparison.rows([cases[name] for name in names], options.dtype, options.work)
        taken = print_comparison(rows, peers, options.markdown)
        if options.plot and peers:
            plot(taken, peers, options.plot)
    for part in parts or (PARTS if options.smoke else ()):
        for dtype in own_dtypes:
            if part == "generality":
                generality(cases["causal-4096"], dtype, own_work, smoke=options.smoke, **shared)
            elif part == "growth":
                growth(cases, dtype, own_work, smoke=options.smoke, **shared)
            elif part == "forward_mode":
                chosen = options.case or (SMOKE if options.smoke else FORWARD_MODE)
                forward_mode([cases[name] for name in chosen], dtype, **shared)
            elif part == "threshold":
                threshold(dtype, own_work, smoke=options.smoke, **shared)
            else:
                compile_times(cases, dtype, smoke=options.smoke, markdown=options.markdown)
    if machine.rounds:
        say(machine.report())


if __name__ == "__main__":
    main()
