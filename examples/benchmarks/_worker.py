"""A peer in a process of its own, called by turns over a pipe.

`Worker` is the side of the benchmark, which imports none of the peer; `serve` is the other side. A
message is one line of JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class WorkerError(RuntimeError):
    """What went wrong over there."""


class Worker:
    """The process, which is started when it is first asked, and again if it has died.

    Args:
      script: Calls `serve`.
      threads: How many it may use.
    """

    def __init__(self, script: Path, threads: int) -> None:
        self._script, self._threads = script, threads
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name, "stderr")
        self._loaded: dict[str, Any] = {}

    def load(self, inputs: dict[str, np.ndarray], **case: Any) -> None:
        """The arrays of a case, and what else the other side must know of it."""
        path = Path(self._folder.name, "inputs.npz")
        np.savez(path, **inputs)  # type: ignore[arg-type]
        self._loaded = {"do": "load", "path": str(path), **case}
        self._ask(self._loaded)

    def prepare(self, function: str, backward: bool) -> list[np.ndarray]:
        """Compile, call twice, and give the results for comparison."""
        path = Path(self._folder.name, "results.npz")
        self._ask({"do": "prepare", "function": function, "backward": backward, "path": str(path)})
        with np.load(path) as results:
            return list(results.values())

    def call(self, function: str) -> float:
        """Seconds of one call of what was prepared."""
        return self._ask({"do": "call", "function": function})["seconds"]

    def process_id(self) -> int:
        return self._start().pid

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._folder.cleanup()

    def _start(self) -> "subprocess.Popen[str]":
        if self._process is None:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": str(self._threads),
                "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else a pool of processes stays around
            }
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, str(self._script), str(self._threads)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                )
        return self._process

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._process is None and message is not self._loaded:
            self._ask(self._loaded)
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(message), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        if not answer:
            code, self._process = process.wait(), None
            last = self._errors.read_text().strip().rpartition("\n")[2]
            raise WorkerError(f"the process ended with code {code}. {last}".strip())
        reply = json.loads(answer)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply


class State:
    """The other side of a worker: what is loaded, and the functions prepared."""

    def __init__(self) -> None:
        self.programs: dict[str, Callable[[], Any]] = {}

    def call(self, function: str) -> dict[str, float]:
        program = self.programs[function]
        start = time.perf_counter()
        program()
        return {"seconds": time.perf_counter() - start}


def serve(make_state: Callable[[Any], State]) -> None:
    """Answer with PyTorch until the pipe closes."""
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    state = make_state(torch)
    # Whatever the compiler prints must not get into the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        message = json.loads(line)
        action = getattr(state, message.pop("do"))
        try:
            reply = action(**message) or {}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        print(json.dumps(reply), file=answers, flush=True)
