"""Train the language model of `char_lm.py` over a mesh of devices: batch, sequence and heads split.

    python examples/sharded_lm.py --mesh data=2,seq=2,heads=2 --compare

A machine without accelerators acts as if it had the eight devices. With the sequence in two parts
of 64 characters, the window of 64 characters reaches into the part before, so keys and values
travel. `--strategy` says how; several are tried one after the other:

    ring       keys and values move from device to device
    ulysses    an all-to-all exchange gives each device some heads of all tokens
    allgather  each device gathers all keys and values
    jit        XLA splits the attention by the sharding of its arguments; no placement is named

`--compare` trains on one device too, and prints the losses side by side. They are the same to six
digits for 120 steps. Then rounding grows, as it does on one device when a weight is changed by one
part in a million, and after 600 steps both are between 1.40 and 1.43. That takes two to four
minutes for each column on 2 cores of an Intel Xeon.

`--checkpoint FOLDER` saves the model every 100 steps and at the end. The same command goes on where
it ended, also with another mesh, strategy or number of processes.

Several processes have a part of the mesh each. Start the same command in each, here for two:

    python examples/sharded_lm.py --coordinator 127.0.0.1:1234 --num-processes 2 --process-id 0 &
    python examples/sharded_lm.py --coordinator 127.0.0.1:1234 --num-processes 2 --process-id 1

On a TPU pod slice and under SLURM or Open MPI `--distributed` is enough: JAX finds the rest. When a
process dies, the others end with an error, at the latest after `--heartbeat` seconds.

    python examples/sharded_lm.py --smoke    # 3 steps of one layer: does it run?

Needs `pip install "flax-attn[generate]"`.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import sharded
from language_models import characters
from language_models.characters import BATCH, CONFIG, EVERY, STEPS
from language_models.llama import Llama

# What each axis of the mesh splits, and how many of them there are.
AXES = {"data": BATCH, "seq": CONFIG.context_length, "heads": CONFIG.num_kv_heads}
MESH = "data=2,seq=2,heads=2"
PLACEMENTS = {
    "ring": sharded.Ring("seq"),
    "ulysses": sharded.Ulysses("seq"),
    "allgather": sharded.AllGather("seq"),
}
STRATEGIES = ("jit", *PLACEMENTS)
ALONE = "one device"
HEARTBEAT = 100  # seconds, JAX's own
SMOKE_STEPS, ROWS = 3, 10  # ROWS of the printed loss curve


def parse_mesh(text: str) -> dict[str, int]:
    """How many devices each axis has: an axis that is not named has one."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or not size.isdigit():
            raise argparse.ArgumentTypeError(f"must be like {MESH}, got {part!r}.")
        if int(size) < 1 or AXES[name] % int(size):
            raise argparse.ArgumentTypeError(f"{name} must divide {AXES[name]}, got {size}.")
        sizes[name] = int(size)
    return sizes


def make_mesh(sizes: dict[str, int], devices: list[jax.Device]) -> Mesh:
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def spec_of(path: tuple[Any, ...]) -> P:
    """The projections of the attention, and their moments, are split by heads; the rest is not."""
    names = [getattr(key, "key", None) for key in path]
    if "attention" not in names:
        return P()
    return P("heads") if "out" in names else P(None, "heads")  # [N, D, M], [M, N, D]


def attention_options(strategy: str, mesh: Mesh) -> dict[str, Any]:
    """What a strategy asks of the attention: with "jit" nothing."""
    if strategy not in PLACEMENTS:
        return {}
    return {"placement": PLACEMENTS[strategy].on(mesh, batch="data", heads="heads")}


def make_model(mesh: Mesh, make: Callable[[], Any]) -> tuple[Llama, nnx.Optimizer]:
    """`make()`, where each device makes its own part: no device ever holds all of it."""
    graph, abstract = nnx.split(nnx.eval_shape(make))
    shardings = jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, spec_of(path)), abstract
    )
    return nnx.merge(graph, jax.jit(lambda: nnx.state(make()), out_shardings=shardings)())


def train(name: str, mesh: Mesh, args: argparse.Namespace) -> dict[int, float]:
    """The loss before each step, with one of the strategies or on one device."""
    sharding = NamedSharding(mesh, P("data", "seq"))

    def place(batch: np.ndarray) -> jax.Array:
        """Put on the devices of this process their parts of the batch, and no others."""
        return jax.make_array_from_callback(batch.shape, sharding, lambda part: batch[part])

    config = dataclasses.replace(CONFIG, num_layers=1) if args.smoke else CONFIG
    options = attention_options(name, mesh)
    make = functools.partial(characters.make_model, config, args.seed, args.steps, **options)
    model, optimizer = make_model(mesh, make)
    return characters.train(
        model,
        optimizer,
        args.steps,
        args.seed,
        folder=None if name == ALONE else args.checkpoint,
        every=args.save_every,
        place=place,
        title=name if jax.process_index() == 0 else None,
    )


def connect(args: argparse.Namespace) -> None:
    """Join the other processes, before JAX looks for devices."""
    if args.distributed or args.coordinator is not None:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            heartbeat_timeout_seconds=args.heartbeat,
        )


def main() -> None:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mesh", type=parse_mesh, default=MESH, help="devices per axis")
    parser.add_argument("--strategy", nargs="+", choices=STRATEGIES, default=["ring"])
    parser.add_argument("--steps", type=int, default=STEPS, help="in all")
    parser.add_argument("--compare", action="store_true", help="train on one device too")
    parser.add_argument("--checkpoint", type=Path, help="folder to save to and to go on from")
    parser.add_argument("--save-every", type=int, default=EVERY, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distributed", action="store_true", help="several processes, found")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int, help="0 ... num_processes − 1")
    parser.add_argument("--heartbeat", type=int, default=HEARTBEAT, help="seconds")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE_STEPS} steps, 1 layer")
    args = parser.parse_args()
    if args.checkpoint is not None and len(args.strategy) > 1:
        parser.error("--checkpoint: it is for one strategy.")
    if args.smoke:
        args.steps = SMOKE_STEPS
    num_devices = math.prod(args.mesh.values())
    if not args.distributed:  # has no effect on accelerators
        jax.config.update("jax_num_cpu_devices", -(-num_devices // (args.num_processes or 1)))
    connect(args)
    devices = jax.devices()
    if num_devices > len(devices) or (jax.process_count() > 1 and num_devices < len(devices)):
        parser.error(f"--mesh: it has {num_devices} devices, and there are {len(devices)}.")

    mesh = make_mesh(args.mesh, devices[:num_devices])
    curves = {name: train(name, mesh, args) for name in args.strategy}
    if args.compare:
        alone = make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])
        curves[ALONE] = train(ALONE, alone, args)
    if jax.process_index() == 0:
        print_curves(curves)


def print_curves(curves: dict[str, dict[int, float]]) -> None:
    """The losses of some steps, the first and the last among them, side by side."""
    steps = list(next(iter(curves.values())))
    every = max(1, len(steps) // ROWS)
    print("step", *(f"{name:>12}" for name in curves))
    for step in steps:
        if step % every == 0 or step == steps[-1]:
            print(f"{step:4}", *(f"{curve[step]:12.6f}" for curve in curves.values()))


if __name__ == "__main__":
    main()
