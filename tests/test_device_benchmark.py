"""The logic of `examples/benchmarks/device.py`: processes, time, ratios, JSON, what is right."""

import json
import os
import sys
import time

import device
import jax
import jax.numpy as jnp
import pytest
from _device_kernels import Case, first_line, kernel, measure, ours
from _device_processes import DECLINED, FAILED, HUNG, MEASURED, SKIPPED, run_jobs

# Takes the place of a kernel. Its name says what it does.
STAND_IN = """
import json, os, pathlib, sys, time

name, jobs = sys.argv[1], json.loads(sys.argv[-1])
with (pathlib.Path(__file__).parent / "processes").open("a") as file:
    print(name, os.getpid(), file=file)


def say(**message):
    print(json.dumps(message), flush=True)


if name == "absent":
    raise ImportError("there is no such package")
print("{'a line': of a library}")
for job in jobs:
    say(begin=job)
    if name == "probe":
        say(
            end=job, status="measured", device="stand-in", platform="none", versions={"jax": "1"},
            implementations=["dense", "wrong", "cudnn"],
            chosen={"causal": "dense", "alibi": "dense"},
            declined={"causal": {"cudnn": "no."}, "alibi": {"cudnn": "no."}},
        )
        continue
    if name == "sleeps" or (name == "hangs" and job[-1] == "fwd"):
        time.sleep(60)
    if name == "dies" and job[-1] == "fwd":
        print("first line\\nout of luck", file=sys.stderr, flush=True)
        os._exit(7)
    if name == "raises" and job[-1] == "fwd":
        say(end=job, status="failed", message="ValueError: no")
        break
    say(
        end=job, status="measured", seconds=[2.0, 2.0, 8.0], median=2.0, digest="a",
        deterministic=True, seconds_traced=1.0, seconds_compiled=2.0,
        differences={"output": {"largest": 1.0, "relative": 1.0 if name == "wrong" else 1e-3}},
    )
"""
JOBS = [["causal", "fwd"], ["causal", "fwd+bwd"], ["alibi", "fwd+bwd"]]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return path


def started(script):
    """The names and the numbers of the processes that were started."""
    lines = (script.parent / "processes").read_text().splitlines()
    return [(name, int(number)) for name, number in map(str.split, lines)]


def outcomes(script, name, *, limit=30.0, seconds=60.0):
    until = time.monotonic() + seconds
    found = run_jobs([sys.executable, str(script), name], JOBS, limit=limit, until=until)
    return [(job, x["status"], x.get("message", "")) for job, x in found]


def test_the_jobs_of_a_kernel_are_done_in_one_process(script):
    assert outcomes(script, "works") == [(job, MEASURED, "") for job in JOBS]
    assert len(started(script)) == 1


def test_a_process_that_hangs_is_ended_and_reported_and_the_next_job_is_done(script):
    assert outcomes(script, "hangs", limit=2) == [
        (JOBS[0], HUNG, "no result within 2 s"),
        (JOBS[1], MEASURED, ""),
        (JOBS[2], MEASURED, ""),
    ]
    numbers = [number for _, number in started(script)]
    assert len(numbers) == 2
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_a_process_that_ends_is_reported_with_its_last_words_and_the_next_job_is_done(script):
    assert outcomes(script, "dies") == [
        (JOBS[0], FAILED, "the process ended with status 7: out of luck"),
        (JOBS[1], MEASURED, ""),
        (JOBS[2], MEASURED, ""),
    ]


def test_a_process_that_cannot_start_is_started_once(script):
    why = "the process ended with status 1: ImportError: there is no such package"
    assert outcomes(script, "absent") == [(job, FAILED, why) for job in JOBS]
    assert len(started(script)) == 1


def test_the_jobs_that_a_process_leaves_are_done_by_a_new_one(script):
    assert outcomes(script, "raises") == [
        (JOBS[0], FAILED, "ValueError: no"),
        (JOBS[1], MEASURED, ""),
        (JOBS[2], MEASURED, ""),
    ]
    assert len(started(script)) == 2


def test_what_has_no_time_left_is_skipped(script):
    start = time.monotonic()
    assert outcomes(script, "sleeps", seconds=0.5) == [
        (job, SKIPPED, "no time was left") for job in JOBS
    ]
    assert time.monotonic() - start < 5


def test_the_time_that_is_left_is_divided_among_the_turns():
    # Six shares for each first turn, one for each second.
    assert device.until(0, 2, now=0, end=140) == 60
    # What the first has not used is for all that follow: 130 s for 6 + 1 + 1 shares.
    assert device.until(1, 2, now=10, end=138) == 10 + 6 / 8 * 128
    assert device.until(2, 2, now=100, end=120) == 110
    assert device.until(3, 2, now=100, end=120) == 120


def measured(*seconds, digest="a", **more):
    median = sorted(seconds)[len(seconds) // 2]
    return {
        "status": MEASURED,
        "seconds": list(seconds),
        "median": median,
        "digest": digest,
        "deterministic": True,
        "close": True,
        **more,
    }


JOB = ("dense", "causal", "fwd")


def test_the_times_of_both_turns_count():
    results = {}
    device.add(results, JOB, measured(1.0, 2.0, 3.0))
    device.add(results, JOB, measured(7.0, 8.0))
    assert results[JOB]["median"] == 3.0
    assert results[JOB]["deterministic"]
    assert results[JOB]["processes"] == 2


def test_two_processes_with_other_bits_are_not_deterministic():
    results = {}
    device.add(results, JOB, measured(1.0))
    device.add(results, JOB, measured(1.0, digest="b"))
    assert not results[JOB]["deterministic"]


def test_what_was_skipped_is_measured_later_and_what_was_measured_is_kept():
    skipped = {"status": SKIPPED, "message": "no time"}
    results = {}
    device.add(results, JOB, skipped)
    device.add(results, JOB, measured(1.0))
    device.add(results, JOB, skipped)
    assert results[JOB] == measured(1.0)
    device.add(results, JOB, {"status": FAILED, "message": "out of luck"})
    assert results[JOB] == measured(1.0, message="then failed: out of luck")


def test_a_ratio_is_that_of_the_medians():
    target = device.Target("forward", "causal", "fwd", "jax.nn cudnn", 0.97)
    results = {
        JOB: measured(1.0, 2.0, 30.0),
        ("jax.nn cudnn", "causal", "fwd"): measured(1.0, 1.9, 1.9),
    }
    (row,) = device.ratios(results, {"causal": "dense"}, [target])
    assert (row["ratio"], row["met"], row["own"]) == (0.95, False, "dense")
    results[JOB] = measured(1.9, 1.9, 30.0)
    (row,) = device.ratios(results, {"causal": "dense"}, [target])
    assert (row["ratio"], row["met"], row["message"]) == (1.0, True, "")


def test_a_target_without_a_measurement_says_why():
    target = device.Target("forward", "causal", "fwd", "jax.nn cudnn", 0.97)
    results = {JOB: measured(1.0)}
    (row,) = device.ratios(results, {"causal": "dense"}, [target])
    assert row["ratio"] is row["met"] is None
    assert row["message"] == "not measured: jax.nn cudnn: not asked for"
    results["jax.nn cudnn", "causal", "fwd"] = {"status": HUNG, "message": "no result"}
    (row,) = device.ratios(results, {"causal": "dense"}, [target])
    assert row["message"] == "not measured: jax.nn cudnn: timed out: no result"
    results["jax.nn cudnn", "causal", "fwd"] = measured(1.0, close=False)
    (row,) = device.ratios(results, {"causal": "dense"}, [target])
    assert row["message"] == "not measured: jax.nn cudnn: its results are wrong"


def test_the_largest_difference_is_nan_if_there_is_one():
    differences = [{"relative": x} for x in (0.5, float("nan"), 2.0)]
    result = {"differences": dict(zip("abc", differences, strict=True))}
    assert device.difference(result) != device.difference(result)
    del result["differences"]["b"]
    assert device.difference(result) == 2.0


def run_main(script, monkeypatch, *arguments):
    path = script.parent / "report.json"
    monkeypatch.setattr(device, "SCRIPT", script)
    status = 0
    try:
        device.main(["--smoke", "--json", str(path), *arguments])
    except SystemExit as error:
        status = error.code
    return status, json.loads(path.read_text())


def test_the_report_has_every_kernel_case_and_pass(script, monkeypatch, capsys):
    kernels = ["dense", "cudnn", "dies", "jax.nn xla"]
    status, report = run_main(script, monkeypatch, "--kernel", *kernels)
    assert status == 0
    jobs = {(x["kernel"], x["case"], x["pass"]): x["status"] for x in report["results"]}
    passes = ("fwd", "fwd+bwd")
    assert set(jobs) == {(k, c, p) for k in kernels for c in ("causal", "alibi") for p in passes}
    assert {status for (name, *_), status in jobs.items() if name == "cudnn"} == {DECLINED}
    assert {jobs["dies", case, "fwd"] for case in ("causal", "alibi")} == {FAILED}
    assert (report["device"], report["versions"]) == ("stand-in", {"jax": "1"})
    assert report["date"].startswith("2")
    assert report["spent"] < report["budget"]
    # Two turns of three times each: the quartiles and the rate are those of all six.
    (dense,) = (x for x in report["results"] if (x["kernel"], x["case"], x["pass"]) == JOB)
    assert dense["seconds"] == [2.0, 2.0, 8.0] * 2
    assert (dense["median"], dense["quartiles"], dense["processes"]) == (2.0, [2.0, 6.5], 2)
    case = device.CASES[0].smoke()
    assert dense["tflops"] == case.operations("fwd") / 2e12
    assert [x["ratio"] for x in report["targets"]] == [None, None, 1.0]
    printed = capsys.readouterr().out
    assert "dies (causal fwd, alibi fwd) failed: the process ended with status 7" in printed
    assert "cudnn (causal fwd, causal fwd+bwd, alibi fwd, alibi fwd+bwd) declined: no." in printed
    assert "jax.nn cudnn: not asked for" in printed


def test_the_budget_is_kept_and_the_report_says_what_was_skipped(script, monkeypatch):
    arguments = ("--kernel", "sleeps", "dense", "--budget", "3", "--case", "causal")
    start = time.monotonic()
    _, report = run_main(script, monkeypatch, *arguments)
    assert time.monotonic() - start < 6
    status = {x["kernel"]: x["status"] for x in report["results"]}
    assert status == {"sleeps": SKIPPED, "dense": MEASURED}


def test_a_wrong_result_of_ours_is_the_status_of_the_program(script, monkeypatch, capsys):
    status, _ = run_main(script, monkeypatch, "--kernel", "wrong", "--case", "causal")
    assert status == "Wrong results: wrong."
    assert "1.0e+00 WRONG" in capsys.readouterr().out


def test_a_device_that_does_not_answer_is_an_error(script, monkeypatch):
    monkeypatch.setattr(device, "PROBE", "absent")
    monkeypatch.setattr(device, "SCRIPT", script)
    with pytest.raises(SystemExit, match=r"does not answer: .* there is no such package"):
        device.main(["--smoke"])


def test_operations_are_those_of_the_visible_pairs():
    # A query and two earlier keys: 1 + 2 + 3 + 3 + 3 of 25 pairs.
    case = Case("window", (2, 5, 4, 2, 8), window=2)
    assert case.density == 12 / 25
    assert case.operations("fwd") == pytest.approx(4 * 2 * 4 * 12 * 8)
    assert case.operations("fwd+bwd") == pytest.approx(3.5 * case.operations("fwd"))
    assert Case("causal", (1, 4, 1, 1, 8)).density == 10 / 16


CASE = Case("all", (2, 48, 4, 2, 16), window=20, alibi=True)


@pytest.mark.parametrize("name", ["dense", "jax.nn xla"])
def test_a_kernel_is_measured(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # for jax.nn
        found = measure(name, CASE, "fwd+bwd", limit=1e-6)
    assert found["status"] == MEASURED
    assert found["deterministic"]
    assert list(found["differences"]) == ["output", "dquery", "dkey", "dvalue", "dslopes"]
    # bfloat16 rounds to 8 bits.
    assert all(0 < x["relative"] < 2**-6 for x in found["differences"].values())
    assert found["median"] > 0
    assert len(found["seconds"]) >= 3  # which quartiles need, however long a call takes
    assert first_line(ValueError("a\nb")) == "ValueError: a"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda q, k, v, m: (q, k, v[:, :, ::-1], m), "output"),
        (lambda q, k, v, m: (q, k[:, :, ::-1], v, m), "output"),
        (lambda q, k, v, m: (q, k, v, m[::-1]), "output"),
        (lambda q, k, v, m: (q, k, v, m + jnp.float32(0.01)), "output"),
        (lambda q, k, v, m: (q, k, v, m * jnp.float32(1.5)), "dslopes"),
    ],
    ids=["values", "keys", "slopes", "more", "steeper"],
)
def test_a_kernel_that_computes_something_else_is_found_out(change, wrong, monkeypatch):
    def attend(case, *arrays):
        return ours("dense", case, *change(*arrays))

    monkeypatch.setitem(device.PEERS, "other", attend)
    assert kernel("other") is attend
    found = measure("other", CASE, "fwd+bwd", limit=1e-6)["differences"]
    assert found[wrong]["relative"] > device.TOLERANCE
