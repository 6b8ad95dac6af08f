"""Jobs in a process of their own, so that one that hangs or ends leaves the others alone.

The process gets its jobs as its last argument, in JSON. It prints a line of JSON when it begins a
job, `{"begin": job}`, and one when the job is done, `{"end": job, "status": ..., ...}`. Other lines
that it prints are ignored. It may end after any job; the others are done by a new process.
"""

import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

Result = dict[str, Any]
"""What is known of a job: its `"status"`, measurements, and a `"message"` if there are none."""

MEASURED, DECLINED, FAILED = "measured", "declined", "failed"
HUNG, SKIPPED = "timed out", "skipped"
OUT_OF_TIME = "no time was left"


class Process:
    """A process that prints lines of JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, text=True, errors="replace"
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()  # nothing, if it has ended
        self._process.wait()
        self._reader.join()
        self._errors.close()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def message(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None if the process has ended.

        Raises:
          TimeoutError: If none comes within that many seconds.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                raise TimeoutError from None
            if line is None:
                return None
            if line.startswith("{"):
                try:
                    return json.loads(line)
                except json.JSONDecodeError:
                    pass  # of a library that prints braces

    def last_words(self) -> str:
        """The status of a process that has ended, and the last line of its errors."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"the process ended with status {status}: {lines[-1] if lines else 'no message'}"


def run_jobs(
    command: Sequence[str], jobs: Sequence[Any], *, limit: float, until: float
) -> Iterator[tuple[Any, Result]]:
    """Run jobs in a process, and those that are left in a new one when it hangs or ends.

    Args:
      command: Starts the process, without the jobs.
      jobs: Values of JSON. Each is done once.
      limit: Seconds that a job may take, and that the start of a process may take.
      until: When to stop, on the clock of `time.monotonic`.

    Yields:
      Each job with its result, in order.
    """
    waiting = list(jobs)
    while waiting:
        began, is_open = False, False  # whether a job has begun, and whether one is not done
        lost: Result | None = None
        with Process([*command, json.dumps(waiting)]) as process:
            while waiting and lost is None:
                seconds = min(limit, until - time.monotonic())
                try:
                    message = process.message(seconds)
                except TimeoutError:
                    lost = {"status": HUNG, "message": f"no result within {limit:g} s"}
                    if seconds < limit:
                        lost = {"status": SKIPPED, "message": OUT_OF_TIME}
                    break
                if message is None:
                    if began and not is_open:
                        break  # it left the other jobs to a new process
                    lost = {"status": FAILED, "message": process.last_words()}
                elif "begin" in message:
                    began = is_open = True
                elif "end" in message:
                    is_open = False
                    assert message.pop("end") == waiting[0]
                    yield waiting.pop(0), message
        if lost is not None:
            # A process that did not begin a job will not begin another: a package is missing.
            count = 1 if began and lost["status"] != SKIPPED else len(waiting)
            yield from ((job, dict(lost)) for job in waiting[:count])
            del waiting[:count]
