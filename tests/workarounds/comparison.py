"""Compile a function with the rewrites for CPUs and without, and compare time and memory."""

import statistics
import time
from typing import NamedTuple

import jax
import numpy as np

from flax_attn import _cpu
from tests.compilation import AS_USERS

ROUNDS = 7
SECONDS = 0.05  # at least, for one measurement of either program


class Gain(NamedTuple):
    """What a rewrite gains.

    Attributes:
      time: Time of the plain formula / time of the rewrite.
      images: Temporaries of the plain formula less those of the rewrite, in images.
    """

    time: float
    images: float


def gain(function, *shapes, dtype="float32", backward=True) -> Gain:
    """Of a function whose first argument is the image."""
    random = np.random.default_rng(0)
    arrays = [jax.numpy.asarray(random.normal(size=s), dtype) for s in shapes]

    def gradients(*args):
        output, pull_back = jax.vjp(function, *args)
        return output, pull_back(output)

    def compiled():
        fresh = (lambda *args: gradients(*args)) if backward else (lambda *args: function(*args))
        return jax.jit(fresh).lower(*arrays).compile(compiler_options=AS_USERS)

    rewritten = compiled()
    with _cpu.disabled():
        plain = compiled()
    ratios = []
    for i in range(ROUNDS):
        order = [rewritten, plain][:: -1 if i % 2 else 1]
        spent = {program: seconds(program, arrays) for program in order}
        ratios.append(spent[plain] / spent[rewritten])
    temporaries = [p.memory_analysis().temp_size_in_bytes for p in (plain, rewritten)]
    return Gain(statistics.median(ratios), (temporaries[0] - temporaries[1]) / arrays[0].nbytes)


def seconds(program, arrays) -> float:
    """Processor time of one call: wall time would depend on what else the machine does."""
    jax.block_until_ready(program(*arrays))
    start, began, count = time.process_time(), time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < SECONDS:
        jax.block_until_ready(program(*arrays))
        count += 1
    return (time.process_time() - start) / count
