"""Seconds and peak memory of one long sequence with a window, in a fresh process, as JSON.

python examples/benchmarks/_long_window.py LENGTH WINDOW HEAD_DIM DTYPE
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import flax_attn


def peak() -> int:
    """Bytes of memory that this process has used at most."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss, which begins with that of the process that started this
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    length, window, head_dim = map(int, sys.argv[1:4])
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (1, length, 1, head_dim), sys.argv[4]) for key in keys]

    @jax.jit
    def forward_and_backward(cotangent: jax.Array, *arrays: jax.Array) -> Any:
        def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return flax_attn.dot_product_attention(
                query, key, value, is_causal=True, local_window_size=(window, 0)
            )

        output, pull = jax.vjp(attend, *arrays)
        return output, pull(cotangent)

    before = peak()
    program: Any = forward_and_backward.lower(*arrays).compile()
    results = jax.block_until_ready(program(*arrays))
    start = time.perf_counter()
    jax.block_until_ready(program(*arrays))
    answer = {
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": peak(),
        "temporaries": program.memory_analysis().temp_size_in_bytes,
        "finite": all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(results)),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
