"""Write the page of the implementations of attention and what each can do, by asking the library.

    python examples/capabilities.py > docs/implementations.md

15 seconds on a CPU. An implementation has a capability if it lowers every request that needs it.
How memory grows is read from the compiled program: its temporaries for some number of tokens, and
for twice as many.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flax_attn import Coords, Dropout, Sigmoid, Softmax, dot_product_attention, masks, scores
from flax_attn.attention._figures import CONVENTION, FIGURES, HEAD_SIZES
from flax_attn.attention._registry import REGISTRY
from flax_attn.normalizers import Entmax, ReLU, TopK

B, T, N, K, D = 1, 64, 4, 2, 16
SHORT = 1024  # tokens; memory is compared with that of twice as many
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DTYPES = ("float32", "bfloat16", "float16")
INTRODUCTION = """\
# Implementations of attention

Made by `python examples/capabilities.py > docs/implementations.md`, which asks the library.
`dot_product_attention` chooses an implementation, or takes `implementation="name"`. One that cannot
honour an argument raises `NotImplementedError` with the reason. See [attention.md](attention.md).
"""
SPEEDS = f"""
## Published speeds

By these figures an implementation defers to a faster one. None of them was measured with this
library: a program of another library with the same algorithm stands for each implementation. The
H200 counts as an H100, and the v5e as a v5p. `examples/benchmarks/device.py` measures ours.

{CONVENTION}
"""

Function = Callable[..., Any]


@masks.relation
def near(q, k, *, radius):
    return abs(q.positions - k.positions) <= radius


def bend(s, q, k, head_ids, *, slopes):
    return s - slopes[head_ids] * abs(q.positions - k.positions)


def requests(dtype: str) -> dict[str, list[dict[str, Any]]]:
    """The requests of each row of the table. `yes` means that all of them are taken."""
    packed = Coords.from_segments(jnp.arange(T) // 20)
    pairs = jnp.ones((B, N, T, T))
    own = scores.score_mod(bend, slopes=jnp.ones(N))
    return {
        "grouped heads": [{}],
        "causal, left windows": [{"is_causal": True}, {"local_window_size": (8, 0)}],
        "lengths": [{"query_seq_lengths": jnp.full(B, 9), "key_value_seq_lengths": jnp.full(B, 9)}],
        "masks as relations": [
            {"mask": near(radius=5) | masks.Causal()},
            {"mask": masks.SameSegment(), "query_coords": packed, "key_coords": packed},
        ],
        "dense masks": [{"mask": pairs > 0}],
        "biases": [{"bias": pairs.astype(dtype)}],
        "score modifiers": [
            {"score_mod": own >> scores.SoftCap(30.0)},
            {"score_mod": scores.T5Bias(jnp.ones((32, N)))},
        ],
        "sinks": [{"normalizer": Softmax(jnp.zeros(N))}],
        "sigmoid, ReLU": [{"normalizer": Sigmoid()}, {"normalizer": ReLU(T)}],
        "entmax, top-k": [{"normalizer": Entmax()}, {"normalizer": TopK(8)}],
        "dropout": [{"dropout": Dropout(0.1, jax.random.key(0))}],
    }


def attend(name: str, **request: Any) -> Function:
    """Attention by one implementation, as a function of the arrays that returns a number."""

    def f(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(dot_product_attention(*arrays, implementation=name, **request) ** 2)

    return f


def gradient(f: Function) -> Function:
    return jax.grad(f, argnums=(0, 1, 2))


def forward_mode(f: Function) -> Function:
    return lambda *arrays: jax.jvp(f, arrays, arrays)


def second_order(f: Function) -> Function:
    return forward_mode(gradient(f))


DERIVATIVES = {"gradient": gradient, "forward mode": forward_mode, "second order": second_order}


def shapes(length: int, dtype: str) -> list[jax.ShapeDtypeStruct]:
    """The shapes of query, key and value."""
    return [jax.ShapeDtypeStruct((B, length, heads, D), dtype) for heads in (N, K, K)]


def takes(function: Function, platform: str, dtype: str) -> bool:
    """True if a function of query, key and value can be lowered for a platform."""
    try:
        jax.jit(function).trace(*shapes(T, dtype)).lower(lowering_platforms=(platform,))
    except NotImplementedError:
        return False
    return True


@functools.cache
def homes(name: str) -> list[tuple[str, str]]:
    """The platforms and dtypes of plain attention."""
    every = itertools.product(PLATFORMS, DTYPES)
    return [(platform, dtype) for platform, dtype in every if takes(attend(name), platform, dtype)]


def memory(function: Function, dtype: str) -> str:
    """How the temporaries of a function grow with the number of tokens."""
    sizes = []
    for length in (SHORT, 2 * SHORT):
        compiled = jax.jit(function).lower(*shapes(length, dtype)).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    return "O(T · S)" if sizes[1] > 3 * sizes[0] else "O(T + S)"


def column(name: str) -> dict[str, str]:
    """The cells of one implementation, by the name of the row."""
    platform, dtype = homes(name)[0]
    cells = {}
    for row, asked in requests(dtype).items():
        cells[row] = (
            "yes" if all(takes(attend(name, **x), platform, dtype) for x in asked) else "no"
        )
    for row, derivative in DERIVATIVES.items():
        cells[row] = "yes" if takes(derivative(attend(name)), platform, dtype) else "no"
    here = platform == jax.default_backend()
    for row, derivative in DERIVATIVES.items():
        grows = memory(derivative(attend(name)), dtype) if here else "not measured"
        cells[f"memory: {row}"] = grows
    for row, kinds in zip(("platforms", "dtypes"), zip(*homes(name), strict=True), strict=True):
        cells[row] = ", ".join(dict.fromkeys(kinds))
    return cells


def table() -> str:
    """The table in Markdown."""
    columns = {x.name: column(x.name) for x in REGISTRY}
    rows = next(iter(columns.values()))
    header = ["", *(f"`{name}`" for name in columns)]
    return markdown(header, [[row, *(cells[row] for cells in columns.values())] for row in rows])


def speeds() -> str:
    """The published figures in Markdown."""
    sizes = [f"D = {size}" for size in HEAD_SIZES]
    lines = []
    for row in FIGURES:
        case = f"{row.work}, {'causal' if row.is_causal else 'no mask'}"
        rates = ["" if rate is None else str(rate) for rate in row.rates]
        name = f"`{row.implementation}`"
        lines.append([row.device, name, case, *rates, row.measured, row.source])
    header = ["device", "implementation", "pass, mask", *sizes, "measured program", "source"]
    return markdown(header, lines)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(INTRODUCTION)
    print(table())
    print(SPEEDS)
    print(speeds())
