"""What the benchmarks share: functions called by turns, ratios of medians, memory, tables.

The functions to compare are called in turn in one process (A B C, then C B A, and so on), so that a
change in the speed of the machine affects all of them. A ratio is the ratio of two medians over the
rounds. A round begins only when other processes leave the machine alone.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

MAX_FOREIGN_SHARE = 0.2  # of the machine, that other processes may use when a round begins
PATIENCE = 5.0  # seconds to wait for a quiet machine
PAUSE = 0.005  # seconds between calls, so that the threads of one library sleep before the next
MIN_ROUNDS = 3
PASSES = ("fwd", "fwd+bwd")
# Norm of the difference of two results, divided by the norm of one.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}


class Program:
    """A compiled JAX function with its arguments.

    Attributes:
      temporaries: Bytes that it allocates besides arguments and results.
      seconds_traced: Time to trace and lower it.
      seconds_compiled: Time to compile it by XLA.
    """

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        start = time.perf_counter()
        lowered = jax.jit(function).lower(*arguments)
        middle = time.perf_counter()
        self._compiled: Any = lowered.compile()
        self.seconds_traced = middle - start
        self.seconds_compiled = time.perf_counter() - middle
        self.temporaries: int = self._compiled.memory_analysis().temp_size_in_bytes
        self._arguments = arguments

    def __call__(self) -> Any:
        return jax.block_until_ready(self.dispatch())

    def dispatch(self) -> Any:
        """Call it without waiting for its results."""
        return self._compiled(*self._arguments)


def forward_and_backward(
    function: Callable[..., jax.Array], num_moving: int = 3
) -> Callable[..., Any]:
    """`program(cotangent, *arguments)`: the output, and gradients of the first `num_moving`."""

    def program(cotangent: jax.Array, *arguments: Any) -> Any:
        moving, fixed = arguments[:num_moving], arguments[num_moving:]
        output, pull_back = jax.vjp(lambda *x: function(*x, *fixed), *moving)
        return output, pull_back(cotangent)

    return program


def as_arrays(results: Any) -> list[np.ndarray]:
    """The results of a JAX or PyTorch function as float32 arrays of NumPy."""
    leaves = [x.detach().float() if hasattr(x, "detach") else x for x in jax.tree.leaves(results)]
    return [np.asarray(x, np.float32) for x in leaves]


def difference(arrays: list[np.ndarray], expected: list[np.ndarray], dtype: str) -> str | None:
    """How far results are from the expected ones, if that is too far."""
    pairs = zip(arrays, expected, strict=True)
    largest = np.max([np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in pairs])
    return None if largest < TOLERANCES[dtype] else f"its results differ by {largest:.1e}"


class Times:
    """The seconds of each function in each round."""

    def __init__(self, names: Iterable[Any]) -> None:
        self.seconds: dict[Any, list[float]] = {name: [] for name in names}

    def median(self, name: Any) -> float:
        return statistics.median(self.seconds[name])

    def milliseconds(self, name: Any) -> str:
        return f"{1e3 * self.median(name):.1f}"

    def ratio(self, name: Any, base: Any) -> float:
        return self.median(name) / self.median(base)


class Harness:
    """Measures functions and prints tables, as the command line says."""

    @staticmethod
    def add_options(parser: argparse.ArgumentParser, rounds: int = 31, seconds: float = 12) -> None:
        add = parser.add_argument
        add("--rounds", type=int, default=rounds, help="largest number of rounds")
        add("--seconds", type=float, default=seconds, help="of rounds per row of a table")
        add("--noisy", action="store_true", help="do not wait for other processes")
        add("--markdown", action="store_true", help="print Markdown tables")
        add("--smoke", action="store_true", help="tiny sizes, in less than a minute")

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.smoke = options, options.smoke
        self._waits = not (options.noisy or options.smoke) and Path("/proc/stat").exists()
        self._num_rounds = self._num_disturbed = 0
        jax.config.update("jax_enable_compilation_cache", False)
        say(f"{processor()}, {num_cores()} cores, JAX {jax.__version__}")

    def measure(self, calls: Mapping[Any, Callable[[], Any]], burst: float = 0.0) -> Times:
        """Call functions by turns, round by round.

        Args:
          calls: The functions, which return when their work is done.
          burst: If above 0, a call is repeated for that many seconds, after as many that are not
            timed. Use it for short functions.
        """
        times, names = Times(calls), list(calls)
        for call in calls.values():
            call()
        start = time.monotonic()
        for index in range(2 if self.smoke else self.options.rounds):
            if index >= MIN_ROUNDS and time.monotonic() - start > self.options.seconds:
                break
            self._num_rounds += 1
            self._num_disturbed += self._waits and not _wait_until_quiet()
            for name in names[:: -1 if index % 2 else 1]:
                time.sleep(PAUSE)
                if burst:
                    _seconds_per_call(calls[name], burst)
                times.seconds[name].append(_seconds_per_call(calls[name], burst))
        return times

    def table(self, *header: str) -> Callable[..., None]:
        """Print the header of a table, and return a function that prints a row."""
        return print_header(header, markdown=self.options.markdown)

    def report(self) -> None:
        """Print how many rounds began on a busy machine."""
        disturbed = self._num_disturbed if self._waits else "unknown"
        say(f"\n{self._num_rounds} rounds; on a busy machine: {disturbed}")


def print_header(header: Sequence[str], *, markdown: bool = False) -> Callable[..., None]:
    """Print the header of a table, and return a function that prints a row."""
    widths = [max(len(x), 8 if i else 24) for i, x in enumerate(header)]

    def row(*cells: str) -> None:
        if markdown:
            say(f"| {' | '.join(cells)} |")
        else:
            pairs = enumerate(zip(cells, widths, strict=True))
            say("  ".join(x.rjust(w) if i else x.ljust(w) for i, (x, w) in pairs))

    say("")
    row(*header)
    if markdown:
        row(*["---"] * len(header))
    return row


def _seconds_per_call(call: Callable[[], Any], burst: float) -> float:
    start, count, seconds = time.perf_counter(), 0, -1.0
    while seconds < burst:
        call()
        count += 1
        seconds = time.perf_counter() - start
    return seconds / count


def _wait_until_quiet() -> bool:
    """Wait until other processes use little of the machine; False if that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        busy, total = _foreign_and_all_ticks()
        time.sleep(0.2)
        later_busy, later_total = _foreign_and_all_ticks()
        if later_busy - busy < MAX_FOREIGN_SHARE * max(later_total - total, 1):
            return True
    return False


def _foreign_and_all_ticks() -> tuple[float, int]:
    """Clock ticks of all cores since boot: those that other processes used, and all."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle, own = ticks[3] + ticks[4], sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    return sum(ticks) - idle - own, sum(ticks)


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress(items: Iterable[Any], description: str = "") -> Any:
    return tqdm(list(items), description, leave=False)


def say(line: str) -> None:
    """Print a line without breaking the progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f}" if size < 10 * 2**20 else f"{size / 2**20:.0f}"
