"""Our attention beside its peers: case by case, each peer's seconds over ours."""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from _cases import JAX_PEERS, Case, bound, is_installed, jax_arguments, make_inputs
from _rounds import (
    Budget,
    Machine,
    Program,
    Table,
    fastest,
    forward_and_backward,
    megabytes,
    paired,
    say,
    take_rounds,
    typical,
)
from _torch_attention import FUNCTIONS as TORCH_PEERS
from _worker import Worker, WorkerError
from tqdm import tqdm

PEERS = (*JAX_PEERS, *TORCH_PEERS)
MEMORY = 6e9  # bytes of temporaries for a peer's backward pass, unless it may be slow
# Norm of the difference between a peer's results and ours, over the norm of ours.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      case: Its name.
      dtype: `"float32"` or `"bfloat16"`.
      work: `"fwd"` or `"fwd+bwd"`.
      ratios: Of each peer that was timed: the median of paired ratios, and fastest over fastest.
      failures: Why another one was not timed; ours too, if it failed.
      temporaries: Bytes of each JAX program.
      seconds: Of ours.
      seconds_compiled: Of ours, tracing included.
    """

    case: str
    dtype: str
    work: str
    ratios: dict[str, tuple[float, float]]
    failures: dict[str, str]
    temporaries: dict[str, int]
    seconds: float = float("nan")
    seconds_compiled: float = float("nan")


class Comparison:
    """What the rows have in common.

    Attributes:
      peers: Names of those that take part.
      is_slow: Whether a peer's backward pass may take more than MEMORY.
    """

    def __init__(
        self, peers: Sequence[str], machine: Machine, budget: Budget, is_slow: bool
    ) -> None:
        self.peers, self.is_slow = peers, is_slow
        self._machine, self._budget = machine, budget

    def rows(
        self, cases: Sequence[Case], dtypes: Sequence[str], works: Sequence[str]
    ) -> Iterator[Row]:
        """Every case in every dtype and pass, with a progress bar."""
        steps = [(case, dtype, work) for case in cases for dtype in dtypes for work in works]
        worker = Worker(Path(__file__).with_name("_torch_attention.py"), processors())
        with contextlib.closing(worker), tqdm(steps, unit="row") as bar:
            for case, dtype, work in bar:
                bar.set_description(f"{case.name} {dtype} {work}")
                yield self._row(case, dtype, work, worker)

    def _row(self, case: Case, dtype: str, work: str, worker: Worker) -> Row:
        row = Row(case.name, dtype, work, {}, {}, {})
        inputs = make_inputs(case)
        calls: dict[str, Callable[[], float]] = {}
        expected: list[np.ndarray] = []

        def enter(name: str, call: Callable[[], float], results: list[np.ndarray]) -> None:
            if reason := disagreement(results, expected or results, dtype):
                row.failures[name] = f"{name}: {reason}"
            else:
                calls[name] = call

        for name in ("ours", *(peer for peer in self.peers if peer in JAX_PEERS)):
            try:
                program = jax_program(name, case, inputs, dtype, work)
                row.temporaries[name] = program.temporaries
                if name != "ours" and (reason := self._too_large(program, work)):
                    row.failures[name] = reason
                    continue
                leaves = jax.tree.leaves(program.results())
                results = [np.asarray(x, np.float32) for x in leaves]
            except Exception as error:  # out of memory, or declined: the others go on
                row.failures[name] = f"{name}: {describe(error)}"
                if name == "ours":
                    return row
                continue
            if name == "ours":
                compiled = program.seconds_traced + program.seconds_compiled
            enter(name, program, results)
            expected = expected or results

        wanted = [p for p in self.peers if p == "torch" or (p == "flex" and case.flex)]
        if work == "fwd+bwd" and "flex" in wanted:
            wanted.remove("flex")
            row.failures["flex"] = "flex: PyTorch has no backward pass of flex_attention on CPUs."
        for name in wanted:
            self._machine.own = {worker.process_id()}
            try:
                worker.load(inputs, dtype=dtype, is_causal=case.is_causal, window=case.window)
                results = worker.prepare(name, work == "fwd+bwd")
            except WorkerError as error:
                row.failures[name] = f"{name}: {error}"
                continue
            enter(name, functools.partial(worker.call, name), results)

        try:
            rounds = take_rounds(calls, self._machine, self._budget)
        except WorkerError as error:
            for name in set(calls) & set(TORCH_PEERS):
                del calls[name]
                row.failures[name] = f"PyTorch: {error}"
            rounds = take_rounds(calls, self._machine, self._budget)
        for name in calls:
            least = fastest(rounds, name) / fastest(rounds, "ours")
            row.ratios[name] = paired(rounds, name, "ours"), least
        return row._replace(seconds=typical(rounds, "ours"), seconds_compiled=compiled)

    def _too_large(self, program: Program, work: str) -> str | None:
        """Why a program is not run, or None."""
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if program.temporaries > 0.8 * installed:
            return f"Its temporaries do not fit in the machine's {installed / 1e9:.0f} GB."
        if work == "fwd+bwd" and program.temporaries > MEMORY and not self.is_slow:
            return f"More than {MEMORY / 1e9:.0f} GB of temporaries: run with --slow."
        return None


def jax_program(
    name: str, case: Case, inputs: dict[str, np.ndarray], dtype: str, work: str
) -> Program:
    attend, backward = bound(name, case), work == "fwd+bwd"
    arguments = jax_arguments(inputs, dtype, backward)
    return Program(forward_and_backward(attend) if backward else attend, arguments)


def disagreement(results: list[np.ndarray], expected: list[np.ndarray], dtype: str) -> str | None:
    """How far results are from ours, if it is too far."""
    pairs = zip(results, expected, strict=True)
    worst = np.max([np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in pairs])  # or NaN
    if worst < TOLERANCES[dtype]:
        return None
    return f"its results differ from ours by {worst:.1e}."


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def processors() -> int:
    """How many we may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_peers(wanted: Sequence[str]) -> list[str]:
    """Those of the peers that can be measured here; a line about each of the others."""
    reasons = {}
    if not is_installed("tokamax"):
        reasons["tokamax"] = "tokamax is not installed"
    if not is_installed("torch"):
        reasons["torch"] = reasons["flex"] = "PyTorch is not installed"
    elif jax.default_backend() != "cpu":
        reasons["torch"] = reasons["flex"] = f"PyTorch on a CPU, JAX on a {jax.default_backend()}"
    elif shutil.which("g++") is None:
        reasons["flex"] = "there is no g++"
    for name in wanted:
        if name in reasons:
            say(f"Without {name}: {reasons[name]}.")
    return [name for name in wanted if name not in reasons]


def print_comparison(rows: Iterator[Row], peers: Sequence[str], markdown: bool) -> list[Row]:
    jax_peers = [name for name in peers if name in JAX_PEERS]
    header = ["case", "dtype", "pass", *(f"{name} / ours" for name in peers), "ours ms"]
    header += [f"MiB {name}" for name in ("ours", *jax_peers)] + ["compile s"]
    widths = [17, 8, 7, *(14 if n in TORCH_PEERS else 6 for n in peers), 7]
    widths += [0] * (len(jax_peers) + 2)
    table = Table(header, widths, markdown)
    taken = []
    for row in rows:
        taken.append(row)
        cells = [row.case, row.dtype, row.work]
        for name in peers:
            if name in row.ratios:
                median, least = row.ratios[name]
                cells.append(f"{median:.2f}" + f" ({least:.2f})" * (name in TORCH_PEERS))
            else:
                cells.append(table.dash(row.failures[name]) if name in row.failures else "")
        failure = row.failures.get("ours")
        cells.append(table.dash(failure) if failure else f"{1e3 * row.seconds:.1f}")
        for name in ("ours", *jax_peers):
            size = row.temporaries.get(name)
            cells.append("-" if size is None else megabytes(size))
        table.row([*cells, "-" if failure else f"{row.seconds_compiled:.1f}"])
    table.close(
        "peer / ours: median of paired ratios, for PyTorch (fastest / fastest); above 1 ours is "
        "faster. MiB: compiled temporaries."
    )
    return taken


def plot(rows: Sequence[Row], peers: Sequence[str], path: Path) -> None:
    """One group of bars per case, one panel per dtype and pass; up is where ours is faster."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panels = list(dict.fromkeys((row.dtype, row.work) for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    size = (2 + len(cases) * (len(peers) + 1) * 0.2, 2.6 * len(panels))
    figure, axes = plt.subplots(
        len(panels), 1, sharex=True, sharey=True, figsize=size, squeeze=False
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for index, peer in enumerate(peers):
            bars = [
                (cases.index(row.case), row.ratios[peer][0])
                for row in rows
                if (row.dtype, row.work) == panel and peer in row.ratios
            ]
            offset = (index - (len(peers) - 1) / 2) / (len(peers) + 1)
            axis.bar(
                [place + offset for place, _ in bars],
                [ratio - 1 for _, ratio in bars],
                bottom=1,
                width=1 / (len(peers) + 1),
                color=f"C{index}",
                label=peer,
            )
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        axis.axhline(1, color="black", linewidth=1)
        axis.set_title(", ".join(panel), fontsize=10)
        axis.set_ylabel("time / ours")
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    axes[-1, 0].set_xticks(range(len(cases)), cases, rotation=20, ha="right")
    axes[-1, 0].legend(
        ncols=len(peers), fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.4)
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    say(f"Wrote {path}.")
