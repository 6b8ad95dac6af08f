"""What our own choices cost: generality, growth with the length, forward mode, compilation."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _cases import Case, bound, jax_arguments, make_inputs, segments
from _rounds import (
    Budget,
    Machine,
    Program,
    Table,
    forward_and_backward,
    megabytes,
    paired,
    take_rounds,
    typical,
)
from tqdm import tqdm

import flax_attn
from flax_attn import Coords, Dropout, Softmax, masks, scores

LENGTHS, SMOKE_LENGTHS = (8192, 16384, 32768), (128, 256, 512)  # of --growth
DOCUMENTS = (1, 2, 4, 8, 16)
LONG, SMOKE_LONG = (131072, 1024), (2048, 64)  # tokens and window of one head
LONG_LIMIT = 2e9  # bytes, at the peak of the whole process
BUCKETS = 32
# Batch, tokens and heads of --threshold.
SHORT = ((1, 64, 8), (32, 64, 8), (1, 128, 8), (16, 128, 8), (1, 256, 8), (4, 256, 8))
SHORT += ((8, 197, 12), (1, 384, 8), (1, 512, 8), (1, 1024, 8))
COMPILES = 3  # of each composition; the median counts

# ------------------------------------------------------------------------------ compositions


@masks.relation
def not_later(q: Any, k: Any) -> jax.Array:
    """What a user writes for a causal mask."""
    return k.positions <= q.positions


class Composition(NamedTuple):
    """A way to call attention.

    Attributes:
      attend: `attend(query, key, value, *parameters)`.
      parameters: Further arguments.
      learned: How many of them have gradients.
    """

    attend: Callable[..., jax.Array]
    parameters: tuple[Any, ...] = ()
    learned: int = 0

    def program(self, inputs: Mapping[str, np.ndarray], dtype: str, work: str) -> Program:
        backward = work == "fwd+bwd"
        plain = {name: x for name, x in inputs.items() if name != "segment_ids"}
        arguments = [*jax_arguments(plain, dtype, backward), *self.parameters]
        if backward:
            return Program(forward_and_backward(self.attend, 3 + self.learned), arguments)
        return Program(self.attend, arguments)


def with_options(**options: Any) -> Composition:
    return Composition(functools.partial(flax_attn.dot_product_attention, **options))


def with_score_mod(score_mod: scores.ScoreMod, learned: bool = False) -> Composition:
    def attend(query: Any, key: Any, value: Any, score_mod: Any) -> jax.Array:
        return flax_attn.dot_product_attention(
            query, key, value, score_mod=score_mod, is_causal=True
        )

    return Composition(attend, (score_mod,), int(learned))


def with_sink(sink: jax.Array) -> Composition:
    def attend(query: Any, key: Any, value: Any, sink: Any) -> jax.Array:
        return flax_attn.dot_product_attention(
            query, key, value, normalizer=Softmax(sink), is_causal=True
        )

    return Composition(attend, (sink,), 1)


def one_at_a_time(num_heads: int) -> dict[str, Composition]:
    """The same mask said in three ways, and one modifier each; the first is the plain case."""
    table = jnp.zeros((BUCKETS, num_heads))
    t5 = scores.T5Bias(table, bidirectional=False)
    return {
        "is_causal=True": with_options(is_causal=True),
        "mask=Causal()": with_options(mask=masks.Causal()),
        "mask=a user's relation": with_options(mask=not_later()),
        "ALiBi": with_score_mod(scores.ALiBi.for_heads(num_heads)),
        "SoftCap": with_score_mod(scores.SoftCap(50.0)),
        "T5Bias": with_score_mod(t5),
        "T5Bias and its gradient": with_score_mod(t5, learned=True),
        "a sink and its gradient": with_sink(jnp.zeros(num_heads)),
    }


def joined(num_heads: int, length: int, window: int) -> dict[str, Composition]:
    """Some that people run together."""
    ids = jnp.asarray(segments(length, 8, np.random.default_rng(0)))

    def packed(query: Any, key: Any, value: Any, ids: Any, score_mod: Any) -> jax.Array:
        coords = Coords.from_segments(ids, restart=True)
        return flax_attn.dot_product_attention(
            query,
            key,
            value,
            mask=masks.Window(window, 0) & masks.SameSegment(),
            score_mod=score_mod,
            normalizer=Softmax(jnp.zeros(num_heads)),
            query_coords=coords,
            key_coords=coords,
        )

    def dropped(query: Any, key: Any, value: Any, random: Any) -> jax.Array:
        return flax_attn.dot_product_attention(
            query, key, value, is_causal=True, dropout=Dropout(0.1, random)
        )

    both = scores.ALiBi.for_heads(num_heads) >> scores.SoftCap(50.0)
    return {
        "full": with_options(),
        "a window": with_options(is_causal=True, local_window_size=(window, 0)),
        "a prefix or a window": with_options(
            mask=masks.Prefix(window) | masks.Causal() & masks.Window(window, 0)
        ),
        "dropout": Composition(dropped, (jax.random.key(0),)),
        "window, documents, ALiBi, cap, sink": Composition(packed, (ids, both)),
    }


# ------------------------------------------------------------------------------ the parts


def generality(
    case: Case,
    dtype: str,
    works: Sequence[str],
    *,
    smoke: bool,
    machine: Machine,
    budget: Budget,
    markdown: bool,
) -> None:
    """Seconds of each composition over those of the plain case."""
    num_heads = case.sizes[2]
    compositions = one_at_a_time(num_heads)
    if smoke:
        compositions = {name: compositions[name] for name in list(compositions)[::2]}
    plain = next(iter(compositions))
    inputs = make_inputs(case)
    measured: dict[str, dict[str, str]] = {name: {} for name in compositions}
    for work in works:
        programs = {
            name: composition.program(inputs, dtype, work)
            for name, composition in progress(compositions.items(), f"{work}: compile")
        }
        for program in programs.values():
            program()
        rounds = take_rounds(programs, machine, budget)
        for name in compositions:
            measured[name][f"{work} / plain"] = f"{paired(rounds, name, plain):.2f}"
            measured[name][f"{work} ms"] = f"{1e3 * typical(rounds, name):.1f}"
            measured[name][f"{work} MiB"] = megabytes(programs[name].temporaries)
    header = [f"{spelled(case)} {dtype}", *measured[plain]]
    table = Table(header, [24] + [7] * len(measured[plain]), markdown)
    for name, cells in measured.items():
        table.row([name, *cells.values()])
    table.close("/ plain: median of paired ratios over is_causal=True; below 1 it is faster.")


def growth(
    cases: Mapping[str, Case],
    dtype: str,
    works: Sequence[str],
    *,
    smoke: bool,
    machine: Machine,
    budget: Budget,
    markdown: bool,
) -> None:
    """Time over length for a window, over Σ n² for documents; memory of a long sequence."""
    lengths = SMOKE_LENGTHS if smoke else LENGTHS
    window_case = cases["window-8192"]
    head = [f"window {window_case.window} {dtype}", "pass", "ms", "time / first", "length / first"]
    table = Table(head, [22, 7, 7, 6, 6], markdown)
    for work in works:
        programs = {
            length: program_of(window_case.resized(length, None), dtype, work)
            for length in progress(lengths, f"{work}: lengths")
        }
        rounds = warm_rounds(programs, machine, budget)
        for length in lengths:
            ratio, expected = paired(rounds, length, lengths[0]), length / lengths[0]
            time = f"{1e3 * typical(rounds, length):.1f}"
            table.row([f"T = {length}", work, time, f"{ratio:.2f}", f"{expected:.2f}"])
    table.close()

    packed_case = cases["packed-4096"]
    length = packed_case.sizes[1]
    packed = {n: make_inputs(packed_case._replace(documents=n)) for n in DOCUMENTS}
    head = [f"documents in {length} {dtype}", "pass", "ms", "time / first", "Σ n² / first"]
    table = Table(head, [22, 7, 7, 6, 6], markdown)
    for work in works:
        compiled = program_of(packed_case, dtype, work)  # one for all: the documents are data
        programs = {
            documents: compiled.given(jax_arguments(inputs, dtype, work == "fwd+bwd"))
            for documents, inputs in packed.items()
        }
        rounds = warm_rounds(programs, machine, budget)
        for documents in DOCUMENTS:
            ids = packed[documents]["segment_ids"][0]
            squares = int(np.sum(np.bincount(ids).astype(np.int64) ** 2))
            ratio, expected = paired(rounds, documents, DOCUMENTS[0]), squares / length**2
            time = f"{1e3 * typical(rounds, documents):.1f}"
            table.row([str(documents), work, time, f"{ratio:.2f}", f"{expected:.2f}"])
    table.close()

    length, window = SMOKE_LONG if smoke else LONG
    script = Path(__file__).with_name("_long_window.py")
    head_dim = window_case.sizes[-1]
    command = [sys.executable, str(script), *map(str, (length, window, head_dim)), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr}")
    answer = json.loads(done.stdout)
    head = [f"T = {length}, window {window} {dtype}", "pass", "ms", "MiB before", "MiB peak"]
    table = Table([*head, "MiB temporaries"], [22, 7, 7, 6, 6, 6], markdown)
    sizes = [megabytes(answer[name]) for name in ("before", "peak", "temporaries")]
    table.row(["one head, a fresh process", "fwd+bwd", f"{1e3 * answer['seconds']:.1f}", *sizes])
    verdict = "below" if answer["peak"] < LONG_LIMIT else "ABOVE"
    finite = "" if answer["finite"] else " Some results are not finite!"
    table.close(
        f"The peak, with Python, JAX and the compiler, is {verdict} the "
        f"{LONG_LIMIT / 1e9:.0f} GB it may be.{finite}"
    )


def forward_mode(
    cases: Sequence[Case], dtype: str, *, machine: Machine, budget: Budget, markdown: bool
) -> None:
    """Seconds of output and derivative along query, key and value, over those of the output."""
    table = Table([f"jvp {dtype}", "jvp ms", "jvp / fwd", "MiB"], [24, 7, 6, 6], markdown)
    for case in progress(cases, "jvp"):
        arguments = jax_arguments(make_inputs(case), dtype, backward=False)
        attend = bound("ours", case)

        def jvp(*values: jax.Array, attend: Callable[..., jax.Array] = attend) -> Any:
            moving, fixed = values[:3], values[3:]
            tangents = tuple(x[::-1] + 1 for x in moving)
            return jax.jvp(lambda *x: attend(*x, *fixed), moving, tangents)

        programs = {"fwd": Program(attend, arguments), "jvp": Program(jvp, arguments)}
        rounds = warm_rounds(programs, machine, budget)
        table.row(
            [
                case.name,
                f"{1e3 * typical(rounds, 'jvp'):.1f}",
                f"{paired(rounds, 'jvp', 'fwd'):.2f}",
                megabytes(programs["jvp"].temporaries),
            ]
        )
    table.close()


def threshold(
    dtype: str,
    work: Sequence[str],
    *,
    smoke: bool,
    machine: Machine,
    budget: Budget,
    markdown: bool,
) -> None:
    """Seconds of all scores at once, and of `jax.nn`, over those of block by block."""
    head = [f"blockwise = 1, {dtype}", "", "dense", "jax.nn"]
    table = Table(head, [24, 8, 6, 6], markdown)
    sizes = [(1, 16, 2), (1, 32, 2)] if smoke else SHORT
    names = [(size, causal) for size in sizes for causal in (False, True)]
    for (batch, length, heads), causal in progress(names, "threshold"):
        case = Case("short", (batch, length, heads, heads, 64), is_causal=causal)
        inputs = make_inputs(case)
        for one in work:
            compositions = {
                name: with_options(is_causal=causal, implementation=name)
                for name in ("blockwise", "dense")
            }
            peer = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
            compositions["jax.nn"] = Composition(peer)
            programs = {n: c.program(inputs, dtype, one) for n, c in compositions.items()}
            rounds = warm_rounds(programs, machine, budget)
            ratios = [f"{paired(rounds, n, 'blockwise'):.2f}" for n in ("dense", "jax.nn")]
            seen = "causal" if causal else "full"
            table.row([f"({batch}, {length}, {heads}) {seen}", one, *ratios])
    table.close()


def compile_times(cases: Mapping[str, Case], dtype: str, *, smoke: bool, markdown: bool) -> None:
    """Seconds to trace and to compile forward and backward pass."""
    case = cases["causal-4096"]
    _, length, num_heads, _, _ = case.sizes
    inputs = make_inputs(case)
    compositions = one_at_a_time(num_heads) | joined(num_heads, length, length // 16)
    if smoke:
        compositions = dict(list(compositions.items())[:1] + list(compositions.items())[-1:])
    jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile()  # wakes the compiler
    head = [f"{spelled(case)} {dtype}", "trace s", "XLA s", "together"]
    table = Table(head, [36, 5, 5, 5], markdown)
    for name, composition in progress(compositions.items(), "compile"):
        times = []
        for _ in range(1 if smoke else COMPILES):
            jax.clear_caches()
            program = composition.program(inputs, dtype, "fwd+bwd")
            times.append((program.seconds_traced, program.seconds_compiled))
        traced, compiled = np.median(times, axis=0)
        table.row([name, f"{traced:.2f}", f"{compiled:.2f}", f"{traced + compiled:.2f}"])
    table.close()


# ------------------------------------------------------------------------------ their parts


def program_of(case: Case, dtype: str, work: str) -> Program:
    backward = work == "fwd+bwd"
    attend = bound("ours", case)
    arguments = jax_arguments(make_inputs(case), dtype, backward)
    return Program(forward_and_backward(attend) if backward else attend, arguments)


def warm_rounds(programs: Mapping[Any, Program], machine: Machine, budget: Budget) -> Any:
    for program in programs.values():
        program()
    return take_rounds(programs, machine, budget)


def progress(items: Any, description: str) -> Any:
    return tqdm(list(items), desc=description, leave=False)


def spelled(case: Case) -> str:
    return "×".join(map(str, case.sizes))
