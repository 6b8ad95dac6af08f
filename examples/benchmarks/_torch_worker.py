"""PyTorch's attention in a process of its own, called by turns over a pipe.

`TorchWorker` is the side of the benchmark, which imports no PyTorch; run as a script this file is
the other side. A message is one line of JSON.
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

FUNCTIONS = ("torch", "flex")  # scaled_dot_product_attention, compiled flex_attention


class WorkerError(RuntimeError):
    """What went wrong over there."""


class TorchWorker:
    """The process, which is started when it is first asked, and again if it has died."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name, "stderr")
        self._loaded: dict[str, Any] = {}

    def load(self, inputs: dict[str, np.ndarray], dtype: str, **case: Any) -> None:
        """The inputs of a case [B, T, N, D], their dtype, and `is_causal` and `window`."""
        path = Path(self._folder.name, "inputs.npz")
        np.savez(path, **inputs)  # type: ignore[arg-type]
        self._loaded = {"do": "load", "path": str(path), "dtype": dtype, **case}
        self._ask(self._loaded)

    def prepare(self, function: str, backward: bool) -> list[np.ndarray]:
        """Compile, call twice, and give the results [B, T, N, D] for comparison."""
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
                    [sys.executable, __file__, str(self._threads)],
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


# ------------------------------------------------------------------------------ the other side


def serve(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    state = State(torch)
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


class State:
    """The tensors of a case, in PyTorch's own layout [B, N, T, D], and the functions prepared."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.programs: dict[str, Callable[[], Any]] = {}

    def load(self, path: str, dtype: str, is_causal: bool, window: int | None) -> None:
        torch = self.torch
        with np.load(path) as inputs:
            arrays = dict(inputs)
        ids = arrays.pop("segment_ids", None)
        self.tensors = {
            name: torch.from_numpy(x).to(getattr(torch, dtype)).transpose(1, 2).contiguous()
            for name, x in arrays.items()
        }
        self.is_causal, self.window = is_causal, window
        self.mask = None
        if window is not None or ids is not None:  # it knows of neither: dense, and built here
            length = self.tensors["query"].shape[2]
            tokens = torch.arange(length)
            self.mask = self.sees(tokens[:, None], tokens)
            if ids is not None:
                ids = torch.from_numpy(ids)
                same = ids[:, None, :, None] == ids[:, None, None, :]
                self.mask = same & self.mask

    def sees(self, i: Any, j: Any) -> Any:
        """Whether query i sees key j, apart from documents."""
        visible = i >= j if self.is_causal else i == i
        return visible if self.window is None else visible & (i - j <= self.window)

    def prepare(self, function: str, backward: bool, path: str) -> None:
        torch = self.torch
        attend = {"torch": self.dot_product, "flex": self.flex}[function]()
        names = ("query", "key", "value")
        moving = [self.tensors[n].clone().requires_grad_(backward) for n in names]

        def program() -> list[Any]:
            if not backward:
                with torch.no_grad():
                    return [attend(*moving)]
            for x in moving:
                x.grad = None
            output = attend(*moving)
            output.backward(self.tensors["cotangent"])
            return [output, *(x.grad for x in moving)]

        program()
        results = [x.detach().float().transpose(1, 2).numpy() for x in program()]
        np.savez(path, *results)
        self.programs[function] = program

    def dot_product(self) -> Callable[..., Any]:
        grouped = self.tensors["query"].shape[1] != self.tensors["key"].shape[1]

        def attend(query: Any, key: Any, value: Any) -> Any:
            return self.torch.nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=self.mask,
                is_causal=self.is_causal and self.mask is None,
                enable_gqa=grouped,
            )

        return attend

    def flex(self) -> Callable[..., Any]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self.torch._dynamo.reset()  # else it gives up after a number of shapes
        length = self.tensors["query"].shape[2]
        block_mask = create_block_mask(
            lambda b, h, i, j: self.sees(i, j), None, None, length, length, device="cpu"
        )
        compiled = self.torch.compile(flex_attention, dynamic=False)
        return lambda query, key, value: compiled(query, key, value, block_mask=block_mask)

    def call(self, function: str) -> dict[str, float]:
        program = self.programs[function]
        start = time.perf_counter()
        program()
        return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    serve(int(sys.argv[1]))
