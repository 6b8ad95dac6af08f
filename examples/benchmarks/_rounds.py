"""Time functions by turns, round by round, each round on a quiet machine."""

import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

MIN_ROUNDS, MAX_ROUNDS = 4, 31
SECONDS = 12.0  # of rounds per row of a table, apart from the first MIN_ROUNDS
FOREIGN = 0.2  # part of the machine that other processes may use when a round begins
SAMPLE, PATIENCE = 0.2, 5.0  # seconds: one look at the machine, the longest wait for it
PAUSE = 0.005  # between two calls, so that the threads of one sleep before another begins

Name = TypeVar("Name")
Round = dict[Any, float]


class Machine:
    """What other processes leave of the machine, and how often that was too little.

    Attributes:
      own: Process ids whose time is ours, besides this process.
    """

    def __init__(self, noisy: bool) -> None:
        self.own: set[int] = set()
        self.rounds = self.disturbed = 0
        self._watched = not noisy and Path("/proc/stat").exists()

    def settle(self) -> None:
        """Wait until the others use less than FOREIGN of it, or until PATIENCE is at its end."""
        self.rounds += 1
        if not self._watched:
            return
        deadline = time.monotonic() + PATIENCE
        while self._foreign() >= FOREIGN:
            if time.monotonic() > deadline:
                self.disturbed += 1
                return

    def report(self) -> str:
        if not self._watched:
            return f"{self.rounds} rounds; nobody looked whether the machine was quiet."
        return (
            f"{self.disturbed} of {self.rounds} rounds began while other processes used "
            f"{FOREIGN:.0%} of the machine or more."
        )

    def _foreign(self) -> float:
        busy, total = self._ticks()
        time.sleep(SAMPLE)
        later_busy, later_total = self._ticks()
        return (later_busy - busy) / max(later_total - total, 1)

    def _ticks(self) -> tuple[int, int]:
        """Ticks of all processors since boot: those that others used, and all."""
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        total, idle = sum(fields), fields[3] + fields[4]
        return total - idle - sum(map(_own_ticks, {os.getpid(), *self.own})), total


def _own_ticks(process: int) -> int:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0
    return int(fields[11]) + int(fields[12])  # in user and in kernel mode


class Budget(NamedTuple):
    """How many rounds a row of a table takes."""

    fewest: int = MIN_ROUNDS
    most: int = MAX_ROUNDS
    seconds: float = SECONDS


def take_rounds(
    calls: Mapping[Name, Callable[[], float]], machine: Machine, budget: Budget
) -> list[dict[Name, float]]:
    """Seconds of each call, per round: A B C, then C B A, and so on.

    Every call returns its own seconds, so that it may be made in another process.
    """
    rounds: list[dict[Name, float]] = []
    began = time.monotonic()
    while len(rounds) < budget.most:
        if len(rounds) >= budget.fewest and time.monotonic() - began > budget.seconds:
            break
        machine.settle()
        seconds = {}
        for name in list(calls)[:: -1 if len(rounds) % 2 else 1]:
            time.sleep(PAUSE)
            seconds[name] = calls[name]()
        rounds.append(seconds)
    return rounds


def paired(rounds: Sequence[Round], name: Any, base: Any) -> float:
    """Median over the rounds of seconds of `name` / seconds of `base` in the same round."""
    return statistics.median(r[name] / r[base] for r in rounds)


def fastest(rounds: Sequence[Round], name: Any) -> float:
    return min(r[name] for r in rounds)


def typical(rounds: Sequence[Round], name: Any) -> float:
    return statistics.median(r[name] for r in rounds)


def burst(call: Callable[[], Any], seconds: float = 0.03) -> float:
    """Seconds of one of several calls in a row, after as many that are not timed.

    For short calls: caches and sleeping threads are no part of them.
    """
    for _ in range(2):
        start = now = time.perf_counter()
        count = 0
        while now - start < seconds:
            call()
            count += 1
            now = time.perf_counter()
    return (now - start) / count


class Program:
    """A compiled JAX function with its arguments.

    Attributes:
      temporaries: Bytes that it allocates besides arguments and results.
      seconds_traced: How long it took to trace and lower.
      seconds_compiled: How long XLA took.
    """

    def __init__(self, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
        start = time.perf_counter()
        lowered = jax.jit(function).lower(*arguments)
        middle = time.perf_counter()
        compiled: Any = lowered.compile()
        self.seconds_traced = middle - start
        self.seconds_compiled = time.perf_counter() - middle
        self.temporaries: int = compiled.memory_analysis().temp_size_in_bytes
        self._compiled, self._arguments = compiled, arguments

    def given(self, arguments: Sequence[Any]) -> "Program":
        """The same program for other arguments of the same shapes."""
        other = copy.copy(self)
        other._arguments = arguments
        return other

    def results(self) -> Any:
        return jax.block_until_ready(self._compiled(*self._arguments))

    def __call__(self) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self.results()
        return time.perf_counter() - start


def forward_and_backward(
    function: Callable[..., jax.Array], arguments: int = 3
) -> Callable[..., Any]:
    """The output, and the cotangents of the first arguments for a given one of the output.

    It is called as `program(cotangent, *arguments)`.
    """

    def program(cotangent: jax.Array, *values: Any) -> Any:
        moving, fixed = values[:arguments], values[arguments:]
        output, pull = jax.vjp(lambda *x: function(*x, *fixed), *moving)
        return output, pull(cotangent)

    return program


class Table:
    """A table whose rows are printed as they come, under notes that explain its dashes."""

    def __init__(self, header: Sequence[str], widths: Sequence[int], markdown: bool) -> None:
        self._markdown = markdown
        self._widths = [max(len(h), w) for h, w in zip(header, widths, strict=True)]
        self._notes: list[str] = []
        self.row(header)
        if markdown:
            self.row(["---"] * len(header))

    def row(self, cells: Sequence[str]) -> None:
        if self._markdown:
            line = f"| {' | '.join(cells)} |"
        else:
            first, *rest = zip(cells, self._widths, strict=True)
            line = "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)])
        say(line)

    def dash(self, note: str) -> str:
        """A dash that refers to a note."""
        if note not in self._notes:
            self._notes.append(note)
        return f"- [{self._notes.index(note) + 1}]"

    def close(self, *remarks: str) -> None:
        for number, note in enumerate(self._notes, 1):
            say(f"{'' if number > 1 else chr(10)}[{number}] {note}{'  ' * self._markdown}")
        for remark in remarks:
            say(f"\n{remark}")
        say("")


def say(line: str) -> None:
    """Print a line without tearing the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def megabytes(size: float) -> str:
    return f"{size / 2**20:.1f}" if size < 10 * 2**20 else f"{size / 2**20:.0f}"
