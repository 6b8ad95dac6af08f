"""What our own choices cost: generality, length, forward mode, compilation, blocks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _cases import Case, arguments_of, make_inputs, make_program, ours, segments
from _harness import Harness, Program, mebibytes, progress

import flax_attn
from flax_attn import Coords, Dropout, Softmax, masks, scores

Cases = Mapping[str, Case]
LENGTHS, SMOKE_LENGTHS = (8192, 16384, 32768), (128, 256, 512)
DOCUMENTS = (1, 2, 4, 8, 16)
LONG, SMOKE_LONG = (131072, 1024), (2048, 64)  # tokens and window of one head
# Batch, tokens and heads of short sequences.
SHORT = ((1, 64, 8), (32, 64, 8), (1, 128, 8), (16, 128, 8), (1, 256, 8), (4, 256, 8))
SHORT += ((8, 197, 12), (1, 384, 8), (1, 512, 8), (1, 1024, 8))
SMOKE_SHORT = ((1, 16, 2), (1, 32, 2))
COMPILES = 3  # of each composition; the median is shown


@masks.relation
def not_later(q: Any, k: Any) -> jax.Array:
    """A causal mask as a user writes it."""
    return k.positions <= q.positions


class Composition(NamedTuple):
    """A way to call attention.

    Attributes:
      attend: Called as `attend(query, key, value, *parameters)`.
      parameters: Further arguments.
      num_learned: Number of parameters that get gradients.
    """

    attend: Callable[..., jax.Array]
    parameters: tuple[Any, ...] = ()
    num_learned: int = 0

    def program(self, inputs: dict[str, np.ndarray], dtype: str, work: str) -> Program:
        plain = {name: x for name, x in inputs.items() if name != "segment_ids"}
        return make_program(self.attend, plain, dtype, work, self.parameters, 3 + self.num_learned)


def with_options(**options: Any) -> Composition:
    return Composition(functools.partial(flax_attn.dot_product_attention, **options))


def with_parameter(
    make: Callable[[Any], dict[str, Any]], parameter: Any, learned: bool = False
) -> Composition:
    """Causal attention with options that are made from a traced parameter."""

    def attend(query: Any, key: Any, value: Any, parameter: Any) -> jax.Array:
        options = {"is_causal": True, **make(parameter)}
        return flax_attn.dot_product_attention(query, key, value, **options)

    return Composition(attend, (parameter,), int(learned))


def compositions(num_heads: int) -> dict[str, Composition]:
    """One mask written in three ways, and single modifiers. The first is the plain case."""
    t5 = scores.T5Bias(jnp.zeros((32, num_heads)), bidirectional=False)
    score_mod = functools.partial(with_parameter, lambda x: {"score_mod": x})
    return {
        "is_causal=True": with_options(is_causal=True),
        "mask=Causal()": with_options(mask=masks.Causal()),
        "a user's relation": with_options(mask=not_later()),
        "ALiBi": score_mod(scores.ALiBi.for_heads(num_heads)),
        "SoftCap": score_mod(scores.SoftCap(50.0)),
        "T5Bias": score_mod(t5),
        "T5Bias and gradient": score_mod(t5, learned=True),
        "sink and gradient": with_parameter(
            lambda x: {"normalizer": Softmax(x)}, jnp.zeros(num_heads), learned=True
        ),
    }


def combinations(num_heads: int, length: int, window: int) -> dict[str, Composition]:
    """Masks, modifiers and dropout that are used together."""
    ids = jnp.asarray(segments(length, 8, np.random.default_rng(0)))

    def packed(parameters: Any) -> dict[str, Any]:
        ids, score_mod = parameters
        coords = Coords.from_segments(ids, restart=True)
        return {
            "is_causal": False,
            "mask": masks.Window(window, 0) & masks.SameSegment(),
            "score_mod": score_mod,
            "normalizer": Softmax(jnp.zeros(num_heads)),
            "query_coords": coords,
            "key_coords": coords,
        }

    both = scores.ALiBi.for_heads(num_heads) >> scores.SoftCap(50.0)
    return {
        "full": with_options(),
        "window": with_options(is_causal=True, local_window_size=(window, 0)),
        "prefix or window": with_options(
            mask=masks.Prefix(window) | masks.Causal() & masks.Window(window, 0)
        ),
        "dropout": with_parameter(lambda x: {"dropout": Dropout(0.1, x)}, jax.random.key(0)),
        "all together": with_parameter(packed, (ids, both)),
    }


def generality(harness: Harness, cases: Cases, dtype: str, works: Sequence[str]) -> None:
    """The cost of masks and score modifiers."""
    case = cases["causal-4096"]
    inputs, chosen = make_inputs(case), compositions(case.sizes[2])
    row = harness.table(f"{case.name} {dtype}", "pass", "/ plain", "ms", "MiB")
    for work in works:
        programs = {
            name: chosen[name].program(inputs, dtype, work)
            for name in progress(list(chosen)[:: 2 if harness.smoke else 1], "generality")
        }
        times = harness.measure(programs)
        for name, program in programs.items():
            ratio = f"{times.ratio(name, 'is_causal=True'):.2f}"
            size = mebibytes(program.temporaries)
            row(name, work, ratio, times.milliseconds(name), size)


def growth(harness: Harness, cases: Cases, dtype: str, works: Sequence[str]) -> None:
    """Time and memory over the length, and over the number of documents."""
    smoke = harness.smoke
    window, packed = cases["window-8192"], cases["packed-4096"]
    row = harness.table(f"growth {dtype}", "pass", "ms", "time", "expected", "MiB")

    def program(case: Case, inputs: dict[str, np.ndarray], work: str) -> Program:
        return make_program(functools.partial(ours, case), inputs, dtype, work)

    def show(name: str, work: str, programs: dict[int, Program], expected: Sequence[float]) -> None:
        """Time and expected time, relative to the first program."""
        times = harness.measure(programs)
        for (n, program), x in zip(programs.items(), expected, strict=True):
            ratio, size = times.ratio(n, next(iter(programs))), mebibytes(program.temporaries)
            row(
                name.format(n),
                work,
                times.milliseconds(n),
                f"{ratio:.2f}",
                f"{x / expected[0]:.2f}",
                size,
            )

    for work in progress(works, "growth"):
        lengths = SMOKE_LENGTHS if smoke else LENGTHS
        resized = [window.resized(length, None) for length in lengths]
        programs = {
            case.sizes[1]: make_program(
                functools.partial(ours, case), make_inputs(case), dtype, work
            )
            for case in progress(resized, "growth")
        }
        show(f"window {window.window}, T = {{}}", work, programs, lengths)
        documents = {n: make_inputs(packed._replace(documents=n)) for n in DOCUMENTS}
        programs = {
            n: make_program(functools.partial(ours, packed), inputs, dtype, work)
            for n, inputs in progress(documents.items(), "growth")
        }
        pairs = [np.sum(np.bincount(x["segment_ids"][0]) ** 2.0) for x in documents.values()]
        show("{} documents", work, programs, pairs)
    length, size = SMOKE_LONG if smoke else LONG
    long = window._replace(sizes=(1, length, 1, 1, window.sizes[-1]), window=size)
    programs = {length: program(long, make_inputs(long), "fwd+bwd")}
    show(f"window {size}, T = {{}}", "fwd+bwd", programs, [1])


def forward_mode(harness: Harness, cases: Cases, dtype: str, works: Sequence[str]) -> None:
    """The cost of jvp along query, key and value."""
    names = harness.options.case or ("causal-4096", "packed-4096", "window-8192")
    row = harness.table(f"jvp {dtype}", "jvp / fwd", "jvp ms", "MiB")
    for case in progress([cases[name] for name in names], "forward mode"):
        arguments = arguments_of(make_inputs(case), dtype, "fwd")
        attend = functools.partial(ours, case)

        def jvp(*values: jax.Array, attend: Callable[..., jax.Array] = attend) -> Any:
            moving, fixed = values[:3], values[3:]
            tangents = tuple(x[::-1] + 1 for x in moving)
            return jax.jvp(lambda *x: attend(*x, *fixed), moving, tangents)

        programs = {"fwd": Program(attend, arguments), "jvp": Program(jvp, arguments)}
        times = harness.measure(programs)
        ratio = f"{times.ratio('jvp', 'fwd'):.2f}"
        row(case.name, ratio, times.milliseconds("jvp"), mebibytes(programs["jvp"].temporaries))


def compile_times(harness: Harness, cases: Cases, dtype: str, works: Sequence[str]) -> None:
    """Seconds to trace and to compile forward and backward."""
    case = cases["causal-4096"]
    _, length, num_heads, _, _ = case.sizes
    inputs = make_inputs(case)
    chosen = compositions(num_heads) | combinations(num_heads, length, length // 16)
    smoke = harness.smoke
    row = harness.table(f"{case.name} {dtype}", "trace s", "XLA s", "total s")
    jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile()  # the first compilation takes longer
    for name in progress(list(chosen)[:: len(chosen) - 1 if smoke else 1], "compile"):
        times = []
        for _ in range(1 if smoke else COMPILES):
            jax.clear_caches()
            program = chosen[name].program(inputs, dtype, "fwd+bwd")
            times.append((program.seconds_traced, program.seconds_compiled))
        traced, compiled = np.median(times, axis=0)
        row(name, f"{traced:.2f}", f"{compiled:.2f}", f"{traced + compiled:.2f}")


def threshold(harness: Harness, cases: Cases, dtype: str, works: Sequence[str]) -> None:
    """Short sequences: the time of dense and of jax.nn over that of blockwise."""
    sizes = SMOKE_SHORT if harness.smoke else SHORT
    row = harness.table(f"(B, T, N) {dtype}", "pass", "dense", "jax.nn")
    steps = [(size, causal, work) for size in sizes for causal in (False, True) for work in works]
    for (batch, length, heads), is_causal, work in progress(steps, "threshold"):
        inputs = make_inputs(Case("short", (batch, length, heads, heads, 64)))
        chosen = {
            name: with_options(is_causal=is_causal, implementation=name)
            for name in ("blockwise", "dense")
        }
        peer = functools.partial(jax.nn.dot_product_attention, is_causal=is_causal)
        chosen["jax.nn"] = Composition(peer)
        times = harness.measure({n: c.program(inputs, dtype, work) for n, c in chosen.items()})
        name = f"({batch}, {length}, {heads}) {'causal' if is_causal else 'full'}"
        row(name, work, *(f"{times.ratio(n, 'blockwise'):.2f}" for n in ("dense", "jax.nn")))


PARTS = {
    "generality": generality,
    "growth": growth,
    "forward-mode": forward_mode,
    "compile": compile_times,
    "threshold": threshold,
}
