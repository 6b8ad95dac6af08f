"""What it costs to split a sequence over devices: work beside one device's, memory, balance.

    python examples/benchmarks/sharded.py                # some 3 minutes on 2 quiet cores
    python examples/benchmarks/sharded.py --memory       # a minute

The devices are virtual ones of this CPU. Work is the processor time of all of them, divided by that
of one device with the whole sequence, causal, forward and with gradients. Balance is how many more
pairs of tokens than the average the busiest device has. Memory is the largest set of temporaries on
one of n devices, with as many tokens for each, divided by that of one of four.

On 2 cores of an Intel Xeon with JAX 0.12 you will see

                            ring     zig-zag   all-gather
    2 devices, forward      1.00      0.98       1.04
    2 devices, gradients    1.00      0.97       0.95
    8 devices, forward      1.07      1.03       1.05
    8 devices, gradients    1.12      1.08       1.02

where eight devices share two cores. When other programs use the machine too, the devices wait for
each other, which counts as work: up to 1.3. In zig-zag order the busiest device has 0.0 % more
pairs than the average, in the order of the text 87 %. The memory of a ring is the same on 4 to 512
devices; all-gather takes 100 times as much on 512.

    python examples/benchmarks/sharded.py --smoke        # tiny sizes, in a minute
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _harness import Harness, Program, progress, say
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_attn import Coords, dot_product_attention, sharded
from flax_attn.coords import striped, zigzag

COUNTS_OF_MEMORY, COUNTS_OF_WORK = (4, 16, 64, 512), (2, 8)  # of devices
LENGTH, HEADS, HEAD_DIM = 8192, 4, 64
TOKENS_PER_DEVICE = 1024  # of the memory
ORDERS = {"in order": lambda coords, shards: coords, "zig-zag": zigzag, "striped": striped}


def ring_of(count: int) -> Mesh:
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), ("seq",), axis_types=(AxisType.Auto,), devices=devices)


def with_gradients(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    def pulled_back(query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
        return jax.vjp(attend, query, key, value)[1](query)

    return pulled_back


class Work:
    """The processor time of a program, in calls by turns with others."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[jax.Array]) -> None:
        self._program = Program(function, arguments)
        self._program()
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """Call the program once."""
        start = time.process_time()
        self._program()
        self.seconds.append(time.process_time() - start)

    def beside(self, other: "Work") -> str:
        """The ratio of the medians."""
        return f"{statistics.median(self.seconds) / statistics.median(other.seconds):.2f}"


def compare_work(harness: Harness) -> None:
    length = 512 if harness.smoke else LENGTH
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.standard_normal((1, length, HEADS, HEAD_DIM)), jnp.float32)
        for _ in range(3)
    ]
    row = harness.table("work", "ring", "zig-zag", "all-gather")
    for count in COUNTS_OF_WORK:
        mesh = ring_of(count)
        split = [jax.device_put(x, NamedSharding(mesh, P(None, "seq"))) for x in arrays]
        coords = zigzag(Coords.arange(length), count)
        attend = functools.partial(sharded.attention, mesh, is_causal=True)
        ring = functools.partial(attend, sharded.Ring("seq"))
        functions = [
            ring,
            functools.partial(ring, query_coords=coords, key_coords=coords),
            functools.partial(attend, sharded.AllGather("seq")),
        ]
        for name, change in (("forward", lambda f: f), ("gradients", with_gradients)):
            alone = Work(change(functools.partial(dot_product_attention, is_causal=True)), arrays)
            programs = [Work(change(function), split) for function in functions]
            for _ in progress(range(2 if harness.smoke else harness.options.rounds), name):
                for program in (alone, *programs):
                    program()
            row(f"{count} devices, {name}", *(program.beside(alone) for program in programs))


def compare_memory(harness: Harness) -> None:
    tokens = 64 if harness.smoke else TOKENS_PER_DEVICE
    counts = COUNTS_OF_MEMORY[:2] if harness.smoke else COUNTS_OF_MEMORY
    row = harness.table("memory of one device", *map(str, counts))
    for name, placement in (
        ("ring", sharded.Ring("seq")),
        ("all-gather", sharded.AllGather("seq")),
    ):
        found = []
        for count in progress(counts, name):
            mesh = ring_of(count)
            sharding = NamedSharding(mesh, P(None, "seq"))
            shape = (1, count * tokens, HEADS, HEAD_DIM)
            x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
            attend = functools.partial(sharded.attention, mesh, placement, is_causal=True)
            compiled = jax.jit(with_gradients(attend)).lower(x, x, x).compile()
            found.append(compiled.memory_analysis().temp_size_in_bytes)
        row(name, *(f"{size / found[0]:.2f}" for size in found))


def compare_balance(harness: Harness) -> None:
    counts = (8, 64)
    row = harness.table("pairs above the average", *(f"{n} devices" for n in counts))
    for name, reorder in ORDERS.items():
        cells = []
        for count in counts:
            positions = np.asarray(reorder(Coords.arange(64 * count), count).positions)
            pairs = (positions + 1).reshape(count, -1).sum(axis=1)  # keys that each query sees
            cells.append(f"{100 * (pairs.max() / pairs.mean() - 1):.1f} %")
        row(name, *cells)


def main() -> None:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Harness.add_options(parser, rounds=9)
    parser.add_argument("--memory", action="store_true", help="compare memory, and nothing else")
    options = parser.parse_args()
    counts = COUNTS_OF_MEMORY if options.memory else COUNTS_OF_WORK  # idle devices cost time, too
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(counts))
    harness = Harness(options)
    if options.memory:
        compare_memory(harness)
    else:
        compare_balance(harness)
        compare_work(harness)
    say("")


if __name__ == "__main__":
    main()
