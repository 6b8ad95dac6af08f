"""Several processes on this machine train `examples/sharded_lm.py` together, and some are lost."""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import sharded_lm
from flax import nnx

from language_models import characters
from tests import compilation
from tests.runs import long

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "sharded_lm.py"
STRATEGIES = ["jit", "ring"]
OPERATIONS = {"ring": "collective_permute", "ulysses": "all_to_all", "allgather": "all_gather"}
LIMIT = 200  # seconds that a process may take: none hangs
HEARTBEAT = 5  # seconds
ROUNDING = 1e-5


class Processes:
    """Processes that run the example with the same arguments, and are ended with the test."""

    def __init__(self, folder, count, *arguments):
        environment = os.environ | {
            "XLA_FLAGS": compilation.flags(compilation.QUICK),  # without the tests' device count
            "PYTHONPATH": str(ROOT),
            "PYTHONFAULTHANDLER": "1",  # one that hangs says where, when it is aborted
        }
        arguments = [*map(str, arguments)]
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            arguments += ["--coordinator", address, "--num-processes", str(count)]
        self.files, self.running = [], []
        for i in range(count):
            own = ["--process-id", str(i)] if count > 1 else []
            self.files.append(folder / f"{i}-of-{count}.txt")
            with self.files[-1].open("w") as file:
                command = [sys.executable, EXAMPLE, *arguments, *own]
                options = {"env": environment, "stdout": file, "stderr": subprocess.STDOUT}
                self.running.append(subprocess.Popen(command, **options))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running:
            process.kill()
            process.wait()

    def text(self, i):
        return self.files[i].read_text()

    def wait(self, i, limit=LIMIT):
        """The exit status of a process; one that takes longer is aborted."""
        try:
            return self.running[i].wait(limit)
        except subprocess.TimeoutExpired:
            self.running[i].send_signal(signal.SIGABRT)
            self.running[i].wait(limit)
            raise AssertionError(f"It took more than {limit} s. {self.text(i)}") from None

    def wait_for(self, condition):
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, self.text(0)
            assert self.running[0].poll() is None, self.text(0)
            time.sleep(0.1)

    def curves(self):
        """The loss curves that process 0 prints `[steps, strategies]`; all have ended well."""
        for i in range(len(self.running)):
            assert self.wait(i) == 0, self.text(i)
        lines = self.text(0).splitlines()
        header = next(i for i, line in enumerate(lines) if line.startswith("step "))
        return np.array([line.split() for line in lines[header + 1 :]], float)[:, 1:]


@pytest.mark.parametrize(
    ("count", "mesh"), [(2, "seq=2,heads=2"), pytest.param(4, "data=2,seq=2,heads=2", marks=long)]
)
def test_several_processes_train_as_one_device_does(count, mesh, tmp_path):
    """The sequence is split between processes, in each of the meshes."""
    arguments = ("--smoke", "--compare", "--mesh", mesh, "--strategy", *STRATEGIES)
    with Processes(tmp_path, count, *arguments) as processes:
        curves = processes.curves()
    assert curves.shape == (3, len(STRATEGIES) + 1)
    assert np.ptp(curves[:, 0]) > 0.05  # it learns
    expected = np.broadcast_to(curves[:, -1:], curves.shape)
    np.testing.assert_allclose(curves, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("strategy", sharded_lm.STRATEGIES)
def test_the_model_has_the_strategy(strategy):
    mesh = sharded_lm.make_mesh(sharded_lm.parse_mesh("seq=2,heads=2"), jax.devices()[:4])
    options = sharded_lm.attention_options(strategy, mesh)
    config = dataclasses.replace(characters.CONFIG, num_layers=1)
    model, _ = nnx.eval_shape(lambda: characters.make_model(config, 0, 1, **options))
    tokens = jax.ShapeDtypeStruct((characters.BATCH, config.context_length), "int32")
    program = nnx.jit(characters.loss_of).lower(model, tokens, tokens).as_text()
    found = {name for name in OPERATIONS.values() if name in program}
    assert OPERATIONS[strategy] in found if strategy in OPERATIONS else not found


@long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_process_is_lost_the_other_ends_within_the_heartbeat_time(lost, how, tmp_path):
    """A process that hangs is lost too. Process 0 is the coordinator."""
    with Processes(tmp_path, 2, "--mesh", "data=2", "--heartbeat", HEARTBEAT) as processes:
        processes.wait_for(lambda: "loss=" in processes.text(0))
        processes.running[lost].send_signal(how)
        code = processes.wait(1 - lost, 3 * HEARTBEAT)
        assert code == -signal.SIGABRT
        assert "the JAX distributed service detected fatal errors" in processes.text(1 - lost)


@long
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_training_goes_on_with_fewer_processes_and_devices(strategy, tmp_path):
    """From the last checkpoint, with the losses of a training that nobody has killed."""
    folder = tmp_path / "model"

    def saved():
        return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]

    common = ("--strategy", strategy, "--checkpoint", folder)
    begin = ("--mesh", "seq=2,heads=2", "--heartbeat", HEARTBEAT, "--steps", 50, "--save-every", 2)
    with Processes(tmp_path, 2, *begin, *common) as processes:
        processes.wait_for(saved)
        processes.running[1].kill()
        assert processes.wait(0, 3 * HEARTBEAT) != 0
    done = max(saved())
    steps = (
        "--steps",
        done + 3,
    )  # up to 50 steps, the learning rates do not depend on their number
    with Processes(tmp_path, 1, "--mesh", "data=2", *steps, *common) as processes:
        end = processes.curves()
        assert f"Going on after {done} steps." in processes.text(0)
    with Processes(tmp_path, 1, "--mesh", "data=1", *steps) as processes:
        expected = processes.curves()
    np.testing.assert_allclose(end, expected[done:], rtol=0, atol=ROUNDING)
