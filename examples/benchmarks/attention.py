"""How long `dot_product_attention` takes and what it allocates, beside `jax.nn`'s and Flax's.

    python examples/benchmarks/attention.py

Two minutes on 2 CPU cores. The functions are called in turn, round by round, so that a change of
the machine's speed meets all of them; a ratio is the median over the rounds of (theirs / ours):
above 1 ours is faster. Temporaries are what the compiled program allocates besides arguments and
results. `--smoke` takes one small shape.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import flax.linen
import jax
import jax.numpy as jnp

import flax_attn

ROUNDS = 11
SHAPES = [(8, 197, 12, 64), (1, 512, 8, 64), (2, 1024, 8, 64)]  # B, T, N, D
SMOKE_SHAPES = [(1, 64, 2, 16)]


def flax_attention(query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool):
    mask = flax.linen.make_causal_mask(query[..., 0, 0], dtype=bool) if is_causal else None
    return flax.linen.dot_product_attention(query, key, value, mask=mask)


FUNCTIONS = {
    "ours": flax_attn.dot_product_attention,
    "jax.nn": jax.nn.dot_product_attention,
    "flax": flax_attention,
}


def compiled(function: Callable, backward: bool, arguments: tuple[jax.Array, ...]):
    """The forward pass, or forward and backward."""

    def loss(*arguments: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(*arguments).astype(jnp.float32)))

    program = jax.grad(loss, (0, 1, 2)) if backward else function
    return jax.jit(program).lower(*arguments).compile()


def measure(programs: dict[str, Callable], arguments: tuple[jax.Array, ...]) -> dict[str, float]:
    """Median over rounds of each one's time over ours."""
    for program in programs.values():
        jax.block_until_ready(program(*arguments))
    rounds = []
    for _ in range(ROUNDS):
        seconds = {}
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name] = time.perf_counter() - start
        rounds.append(seconds)
    return {name: statistics.median(r[name] / r["ours"] for r in rounds) for name in programs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one small shape")
    smoke = parser.parse_args().smoke

    print(f"{'B, T, N, D':16} {'dtype':9} {'mask':7} {'pass':8}", end="")
    print(f"{'jax.nn / ours':>14} {'flax / ours':>12}   temporaries of ours, jax.nn, flax (MiB)")
    for shape in SMOKE_SHAPES if smoke else SHAPES:
        for dtype in (jnp.float32, jnp.bfloat16):
            arguments = tuple(jax.random.normal(jax.random.key(0), (3, *shape), dtype))
            for is_causal in (False, True):
                for backward in (False, True):
                    programs = {
                        name: compiled(
                            functools.partial(f, is_causal=is_causal), backward, arguments
                        )
                        for name, f in FUNCTIONS.items()
                    }
                    ratios = measure(programs, arguments)
                    memory = (p.memory_analysis().temp_size_in_bytes for p in programs.values())
                    mask, work = "causal" if is_causal else "full", "fwd+bwd" if backward else "fwd"
                    print(
                        f"{', '.join(map(str, shape)):16} {jnp.dtype(dtype).name:9} {mask:7} "
                        f"{work:8}{ratios['jax.nn']:14.2f} {ratios['flax']:12.2f}   "
                        + ", ".join(f"{size / 2**20:.0f}" for size in memory),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
