"""Attention on a GPU or TPU: is it right, is it deterministic, and how fast is it beside others.

    python examples/benchmarks/device.py --json device.json       # at most 6 minutes
    python examples/benchmarks/device.py --case causal --kernel cudnn "jax.nn cudnn"

Compared are ours by every implementation that takes the case, `jax.nn` by cuDNN and by XLA, and
tokamax if it is installed, in bfloat16, forward ("fwd") and with gradients ("fwd+bwd"):

    causal           4 × 4096 tokens, 16 heads of 128
    alibi            as causal, with ALiBi and the gradient of its slopes
    grouped-window   8 × 2048 tokens, 16 query heads and 4 key heads of 128, 512 earlier keys
    long             1 × 16384 tokens, 16 heads of 128

Each kernel has a process of its own, one after the other. One that hangs or ends is reported, and
the others go on. When all have had their turn they have another in the opposite order, as long as
there is time, so that a change in the speed of the device affects all of them.

A time is the median over bursts of calls between two synchronisations, so that the time to start a
call does not count. TFLOP/s count 4 · B · N · T · S · D · (share of visible pairs) operations
forward, and 3.5 times as many with gradients. "Speed" is relative to the fastest. "Difference" is
the largest one of the output and all gradients, for the first and the last head, to attention in
float32, relative to the largest entry. A kernel is deterministic ("determ.") if two calls are
bitwise equal, and two processes too, if there was time. The exit status is 1 if ours is wrong.

No figure was measured on a GPU or TPU yet. `--smoke` does all of it on a CPU with tiny sizes, in
half a minute. Needs `pip install "flax-attn[examples]"`.
"""

import argparse
import datetime
import importlib.util
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _device_kernels import CASES, PEERS, PROBE, Case
from _device_processes import DECLINED, MEASURED, SKIPPED, Result, run_jobs
from _harness import PASSES, TOLERANCES, print_header, progress, say

BUDGET, SMOKE_BUDGET = 330.0, 100.0  # seconds
LIMIT = 60.0  # seconds that one kernel may take for one case and pass
TIMED, SMOKE_TIMED = 1.0, 0.1  # seconds of calls for a time
SHARE_OF_FIRST_TURN = 6  # of a kernel's time, in shares of the second turn, which compiles nothing
TOLERANCE = TOLERANCES["bfloat16"]
SMOKE_CASES = ("causal", "alibi")
CONVENTION = "4 · B · N · T · S · D · density operations forward, 3.5 times as many fwd+bwd"

SCRIPT = Path(__file__).with_name("_device_kernels.py")

Job = tuple[str, str, str]
"""The names of a kernel, a case and a pass."""

Report = dict[str, Any]
"""What `--json` writes."""


class Target(NamedTuple):
    """How fast ours should be, beside another kernel.

    Attributes:
      name: What is compared.
      case: The case.
      work: The pass.
      peer: The other kernel.
      ratio: The least time of the peer over ours, by the implementation that the library chooses.
    """

    name: str
    case: str
    work: str
    peer: str
    ratio: float


TARGETS = (
    Target("plain causal, forward", "causal", "fwd", "jax.nn cudnn", 0.97),
    Target("plain causal, forward + backward", "causal", "fwd+bwd", "jax.nn cudnn", 0.95),
    Target("gradients of ALiBi's slopes", "alibi", "fwd+bwd", "jax.nn xla", 1.2),
)


def unavailable(declined: Mapping[str, Mapping[str, str]]) -> dict[Job, Result]:
    """The results of what is known not to run.

    Args:
      declined: For each case, the implementations that decline it, with their reasons.
    """
    known: dict[Job, Result] = {}
    for case, reasons in declined.items():
        absent = {} if importlib.util.find_spec("tokamax") else {"tokamax": "it is not installed."}
        for (name, why), work in itertools.product({**reasons, **absent}.items(), PASSES):
            known[name, case, work] = {"status": DECLINED, "message": why}
    return known


def until(index: int, count: int, now: float, end: float) -> float:
    """When one of the turns of `count` kernels must end.

    The time that is left is divided among this turn and all that follow.

    Args:
      index: The number of the turn, of 2 * count.
      count: The number of kernels.
      now: The time.
      end: When the last turn must end.
    """
    shares = [SHARE_OF_FIRST_TURN] * count + [1] * count
    return now + (end - now) * shares[index] / sum(shares[index:])


def add(results: dict[Job, Result], job: Job, result: Result) -> None:
    """Keep the result of a job, together with that of an earlier process."""
    before = results.get(job)
    if before is None or before["status"] == SKIPPED:
        results[job] = result
    elif result["status"] == MEASURED and before["status"] == MEASURED:
        seconds = before["seconds"] + result["seconds"]
        results[job] = before | {
            "seconds": seconds,
            "median": statistics.median(seconds),
            "processes": before.get("processes", 1) + 1,
            "deterministic": before["deterministic"]
            and result["deterministic"]
            and before["digest"] == result["digest"],
        }
    elif result["status"] != SKIPPED and before["status"] == MEASURED:
        # It was measured once, and failed in its second turn.
        results[job] = before | {"message": f"then {result['status']}: {result['message']}"}


def run(
    command: Callable[[str], Sequence[str]],
    kernels: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    known: Mapping[Job, Result],
    *,
    limit: float,
    end: float,
) -> dict[Job, Result]:
    """The results of all kernels for pairs of a case and a pass.

    Args:
      command: Starts the process of a kernel, without the jobs.
      kernels: The names of the kernels.
      pairs: The cases and passes.
      known: Results of jobs that need not be run.
      limit: Seconds that a job may take.
      end: When to stop, on the clock of `time.monotonic`.
    """
    results = dict(known)

    def is_open(job: Job) -> bool:
        return job not in results or results[job]["status"] in (MEASURED, SKIPPED)

    kernels = [name for name in kernels if any(is_open((name, *pair)) for pair in pairs)]
    order = [*kernels, *reversed(kernels)]
    for index, name in enumerate(progress(order, "kernels")):
        jobs = [list(pair) for pair in pairs if is_open((name, *pair))]
        stop = until(index, len(kernels), time.monotonic(), end)
        for (case, work), result in run_jobs(command(name), jobs, limit=limit, until=stop):
            add(results, (name, case, work), result)
    return results


def ratios(
    results: Mapping[Job, Result], chosen: Mapping[str, str], targets: Sequence[Target] = TARGETS
) -> list[dict[str, Any]]:
    """Each target with the ratio of the medians of summaries, or why there is none."""
    rows = []
    for target in targets:
        own = chosen.get(target.case, "ours")
        row: dict[str, Any] = {**target._asdict(), "own": own, "target": target.ratio}
        row |= {"ratio": None, "met": None, "message": ""}
        found = [results.get((name, target.case, target.work)) for name in (own, target.peer)]
        for name, result in zip((own, target.peer), found, strict=True):
            if result is None or result["status"] != MEASURED:
                why = "not asked for" if result is None else reason(result)
                row["message"] = f"not measured: {name}: {why}"
            elif not result["close"]:
                row["message"] = f"not measured: {name}: its results are wrong"
        if not row["message"]:
            mine, other = (result["median"] for result in found if result is not None)
            row |= {"ratio": other / mine, "met": other / mine >= target.ratio}
        rows.append(row)
    return rows


def reason(result: Result) -> str:
    return f"{result['status']}: {result['message']}"


def difference(result: Result) -> float:
    """The largest relative difference of the output and all gradients; NaN if one has a NaN."""
    found = [x["relative"] for x in result["differences"].values()]
    return max(found, key=lambda x: (x != x, x))


def summary(case: Case, work: str, result: Result) -> Result:
    """A result with what follows from it."""
    if result["status"] != MEASURED:
        return result
    quartiles = statistics.quantiles(result["seconds"], n=4, method="inclusive")
    return result | {
        "quartiles": [quartiles[0], quartiles[2]],
        "tflops": case.operations(work) / result["median"] / 1e12,
        "difference": difference(result),
        "close": difference(result) < TOLERANCE,
    }


def print_report(report: Report, *, markdown: bool = False) -> None:
    """What was measured, why the rest was not, and the targets."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    say(f"{report['device']}; {versions}")
    for case in report["cases"]:
        name = case["name"]
        say(f"{name} {list(case['sizes'])}: the library chooses {report['chosen'][name]}")
    print_measured(report["results"], markdown=markdown)
    jobs_of: dict[tuple[str, str], list[str]] = {}
    for x in report["results"]:
        if x.get("message"):
            why = x["message"] if x["status"] == MEASURED else reason(x)
            jobs_of.setdefault((x["kernel"], why), []).append(f"{x['case']} {x['pass']}")
    say("")
    for (name, why), jobs in jobs_of.items():
        say(f"{name} ({', '.join(jobs)}) {why}")
    header = ["target".ljust(32), "ours".ljust(12), "beside".ljust(12), "at least", "ratio", "met"]
    row = print_header(header, markdown=markdown)
    for x in report["targets"]:
        ratio = "-" if x["ratio"] is None else f"{x['ratio']:.2f}"
        met = x["message"] or ("yes" if x["met"] else "no")
        row(x["name"], x["own"], x["peer"], f"{x['target']:.2f}", ratio, met)
    tiny = " The sizes are tiny, so these are no figures." if report["smoke"] else ""
    say(f"\n{report['spent']:.0f} s of {report['budget']:.0f} s.{tiny}")


def print_measured(results: Sequence[Result], *, markdown: bool) -> None:
    """A row for each measurement, in each case and pass the fastest first."""
    names = ("ms", "quartiles", "TFLOP/s", "speed", "difference", "determ.", "compile s")
    row = print_header(["case", "pass", "kernel".ljust(12), *names], markdown=markdown)
    measured = [x for x in results if x["status"] == MEASURED]
    pairs = dict.fromkeys((x["case"], x["pass"]) for x in results)
    for pair in pairs:
        group = [x for x in measured if (x["case"], x["pass"]) == pair]
        group.sort(key=lambda x: x["median"])
        for x in group:
            low, high = x["quartiles"]
            row(
                *pair,
                x["kernel"],
                f"{1e3 * x['median']:.3f}",
                f"{1e3 * low:.3f}-{1e3 * high:.3f}",
                f"{x['tflops']:.1f}" if x["tflops"] > 0.05 else f"{x['tflops']:.1e}",
                f"{group[0]['median'] / x['median']:.2f}",
                f"{x['difference']:.1e}{'' if x['close'] else ' WRONG'}",
                "yes" if x["deterministic"] else "no",
                f"{x['seconds_traced'] + x['seconds_compiled']:.1f}",
            )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = parser.add_argument
    names = [case.name for case in CASES]
    option("--case", nargs="+", choices=names, help="default: all")
    option("--kernel", nargs="+", metavar="NAME", help=f"ours, or {', '.join(PEERS)}")
    option("--budget", type=float, help=f"seconds of the whole run; default: {BUDGET:.0f}")
    option("--limit", type=float, default=LIMIT, help="seconds of a kernel for a case and pass")
    option("--json", type=Path, metavar="FILE", help="write all results")
    option("--markdown", action="store_true", help="print Markdown tables")
    option("--smoke", action="store_true", help="tiny sizes on any device, in half a minute")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, cases: Sequence[Case], budget: float) -> Report:
    """The device, the results of all kernels, and what follows from them."""
    start, date = time.monotonic(), datetime.datetime.now(datetime.UTC)
    end = start + budget
    with tempfile.TemporaryDirectory() as cache:  # of compiled programs

        def command(name: str) -> list[str]:
            timed = SMOKE_TIMED if options.smoke else TIMED
            return [sys.executable, str(SCRIPT), name, cache, str(timed), json.dumps(cases)]

        ((_, about),) = run_jobs(command(PROBE), [PROBE], limit=options.limit, until=end)
        if about.pop("status") != MEASURED:
            sys.exit(f"The device does not answer: {about['message']}")
        chosen, ours = list(dict.fromkeys(about["chosen"].values())), about["implementations"]
        kernels = [*chosen, *(name for name in ours if name not in chosen), *PEERS]
        kernels = options.kernel or kernels
        pairs = list(itertools.product([case.name for case in cases], PASSES))
        known = {job: x for job, x in unavailable(about["declined"]).items() if job[0] in kernels}
        found = run(command, kernels, pairs, known, limit=options.limit, end=end)
    by_name = {case.name: case for case in cases}
    results = {job: summary(by_name[job[1]], job[2], result) for job, result in found.items()}
    return {
        "date": date.isoformat(timespec="seconds"),
        **about,
        "smoke": options.smoke,
        "budget": budget,
        "spent": time.monotonic() - start,
        "convention": CONVENTION,
        "cases": [{**case._asdict(), "density": case.density} for case in cases],
        "results": [
            {"kernel": kernel, "case": case, "pass": work, **result}
            for (kernel, case, work), result in results.items()
        ],
        "targets": ratios(results, about["chosen"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    budget = options.budget or (SMOKE_BUDGET if options.smoke else BUDGET)
    asked = options.case or (SMOKE_CASES if options.smoke else [case.name for case in CASES])
    cases = [case.smoke() if options.smoke else case for case in CASES if case.name in asked]
    report = measure(options, cases, budget)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report, markdown=options.markdown)
    wrong = [
        x["kernel"]
        for x in report["results"]
        if x.get("close") is False and x["kernel"] in report["implementations"]
    ]
    if wrong:
        sys.exit(f"Wrong results: {', '.join(dict.fromkeys(wrong))}.")


if __name__ == "__main__":
    main()
