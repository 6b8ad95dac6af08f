"""One kernel on the device: is it right, is it deterministic, how long does it take.

`device.py` starts this file, in a process for each kernel, with the kernel's name and jobs in JSON:
pairs of a case and a pass. With the name `PROBE` it says what the device is, what the versions are
and what the library would choose.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _device_processes import DECLINED, FAILED, MEASURED, Result
from _harness import MIN_ROUNDS, Program, forward_and_backward
from jax import lax

import flax_attn
from flax_attn import scores

PROBE = "probe"
PACKAGES = ("flax-attn", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
PACKAGES += ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "tokamax")
FEW_QUERIES = "decode"  # an implementation for a few queries, which no case here has
MEMORY = 0.8  # of the device's memory that a program may take
ROUNDS = 20  # most times of a process
GRADIENTS = ("output", "dquery", "dkey", "dvalue", "dslopes")


class Case(NamedTuple):
    """What attention is asked to compute, in bfloat16 and causal.

    Attributes:
      name: Name for `--case`.
      sizes: Batch B, tokens T, query heads N, key heads K, head size D.
      window: Number of earlier keys that a query attends to; None for all.
      alibi: Whether scores have ALiBi's biases, whose slopes get a gradient.
    """

    name: str
    sizes: tuple[int, int, int, int, int]
    window: int | None = None
    alibi: bool = False

    @property
    def density(self) -> float:
        """The share of the pairs of tokens that are visible."""
        length = self.sizes[1]
        seen = length if self.window is None else self.window + 1
        return sum(min(i + 1, seen) for i in range(length)) / length**2

    def operations(self, work: str) -> float:
        """4 · B · N · T · S · D · density, and 3.5 times as many forward and backward."""
        B, T, N, _, D = self.sizes
        return 4 * B * N * T * T * D * self.density * (3.5 if work == "fwd+bwd" else 1)

    def smoke(self) -> "Case":
        """A tiny case of the same kind."""
        B, _, N, K, _ = self.sizes
        return self._replace(sizes=(min(B, 2), 64, 4, 4 * K // N, 16), window=self.window and 16)


CASES = (
    Case("causal", (4, 4096, 16, 16, 128)),
    Case("alibi", (4, 4096, 16, 16, 128), alibi=True),
    Case("grouped-window", (8, 2048, 16, 4, 128), window=512),
    Case("long", (1, 16384, 16, 16, 128)),
)


def make_inputs(case: Case) -> list[jax.Array]:
    """Normal cotangent, query, key and value, and the slopes of ALiBi if the case has them."""
    B, T, N, K, D = case.sizes
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (N, N, K, K)
    shapes = [(B, T, h, D) for h in heads]
    arrays = [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)]
    return arrays + [scores.ALiBi.for_heads(N).slopes] * case.alibi


def ours(name: str, case: Case, query: Any, key: Any, value: Any, slopes: Any = None) -> jax.Array:
    return flax_attn.dot_product_attention(
        query, key, value, implementation=name, **options_of(case, slopes)
    )


def options_of(case: Case, slopes: jax.Array | None) -> dict[str, Any]:
    """The arguments that say what the case is."""
    options: dict[str, Any] = {"is_causal": True}
    if case.window is not None:
        options["local_window_size"] = (case.window, 0)
    if slopes is not None:
        options["score_mod"] = scores.ALiBi(slopes)
    return options


def jax_nn(
    name: str, case: Case, query: Any, key: Any, value: Any, slopes: Any = None
) -> jax.Array:
    bias = None
    if slopes is not None:
        if name == "cudnn":
            raise NotImplementedError("its gradient of a bias wants a batch of one (jax#30593).")
        tokens = jnp.arange(query.shape[1], dtype=jnp.float32)
        distances = jnp.abs(tokens[:, None] - tokens[None])
        bias = (-slopes[:, None, None] * distances[None])[None]
    window = None if case.window is None else (case.window, 0)
    return jax.nn.dot_product_attention(
        query, key, value, bias, is_causal=True, local_window_size=window, implementation=name
    )


def tokamax(case: Case, query: Any, key: Any, value: Any, slopes: Any = None) -> jax.Array:
    import tokamax
    from absl import flags

    if slopes is not None:
        raise NotImplementedError("it has no score modifiers.")
    if not flags.FLAGS.is_parsed():  # otherwise it parses the command line of this program
        flags.FLAGS(["tokamax"])
    window = None if case.window is None else (case.window, 0)
    return tokamax.dot_product_attention(
        query, key, value, is_causal=True, local_window_size=window
    )


PEERS: dict[str, Callable[..., jax.Array]] = {
    "jax.nn cudnn": functools.partial(jax_nn, "cudnn"),
    "jax.nn xla": functools.partial(jax_nn, "xla"),
    "tokamax": tokamax,
}


def kernel(name: str) -> Callable[..., jax.Array]:
    """The function of a case and its arrays; ours if the name is that of an implementation."""
    return PEERS[name] if name in PEERS else functools.partial(ours, name)


def reference(case: Case, query: Any, key: Any, value: Any, slopes: Any = None) -> jax.Array:
    """Attention `[B, T, G, D]` of one key head `[B, S, D]` in float32, one batch element at a time.

    Query heads G read the same key head. The sums of matrix products are not shortened.
    """
    tokens = jnp.arange(query.shape[1])
    distances = (tokens[:, None] - tokens[None])[None]
    visible = distances >= 0
    if case.window is not None:
        visible &= distances <= case.window

    def attend(arrays: Any) -> jax.Array:
        query, key, value = arrays
        scores_GTS = jnp.einsum("tgd,sd->gts", query, key, precision="highest")
        scores_GTS /= query.shape[-1] ** 0.5
        if slopes is not None:
            scores_GTS -= slopes[:, None, None] * jnp.abs(distances).astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(visible, scores_GTS, -jnp.inf))
        return jnp.einsum("gts,sd->tgd", weights, value, precision="highest")

    return lax.map(attend, (query, key, value))


def differences(case: Case, work: str, inputs: Sequence[Any], results: Any) -> dict[str, Any]:
    """The largest differences to the reference, of the first and the last key head.

    Returns:
      For each array, `"largest"`, and `"relative"` to the largest entry of the reference.
    """
    N, K = case.sizes[2:4]
    found: dict[str, Any] = {}
    function = functools.partial(reference, case)
    backward = work == "fwd+bwd"
    output, gradients = results if backward else (results, ())
    compiled = jax.jit(forward_and_backward(function, len(inputs) - 1) if backward else function)
    for head in {0, K - 1}:
        group = slice(head * (N // K), (head + 1) * (N // K))

        def of_head(name: str, x: jax.Array, head: int = head, group: slice = group) -> jax.Array:
            if name == "slopes":
                return x[group]
            return x[:, :, head if name in ("key", "value") else group].astype(jnp.float32)

        names = ("output", "query", "key", "value", "slopes")
        arrays = [of_head(n, x) for n, x in zip(names, inputs, strict=False)]
        expected = jax.tree.leaves(compiled(*arrays[0 if backward else 1 :]))
        actual = [of_head(n, x) for n, x in zip(names, [output, *gradients], strict=False)]
        for name, x, y in zip(GRADIENTS, actual, expected, strict=False):
            largest = float(jnp.max(jnp.abs(x - y)))
            relative = largest / float(jnp.max(jnp.abs(y)))
            before = found.get(name, {"largest": 0.0, "relative": 0.0})
            # NaN is the largest difference: np.maximum keeps it.
            found[name] = {
                "largest": float(np.maximum(before["largest"], largest)),
                "relative": float(np.maximum(before["relative"], relative)),
            }
    return found


def digest(results: Any) -> str:
    """The same for arrays that are bitwise equal."""
    total = hashlib.blake2b(digest_size=16)
    for x in jax.tree.leaves(results):
        total.update(np.asarray(x).tobytes())
    return total.hexdigest()


def times(program: Program, limit: float) -> list[float]:
    """Seconds per call, of bursts of calls between two synchronisations.

    Args:
      program: The program.
      limit: Seconds of all bursts; a fifth of it is spent before.
    """
    program()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < limit / 5:
        program()
        count += 1
    calls = max(1, round(limit / ROUNDS * count / (time.perf_counter() - start)))
    seconds: list[float] = []
    while len(seconds) < MIN_ROUNDS or (len(seconds) < ROUNDS and sum(seconds) * calls < limit):
        start = time.perf_counter()
        for _ in range(calls):
            results = program.dispatch()
        jax.block_until_ready(results)
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def measure(name: str, case: Case, work: str, limit: float) -> Result:
    """Compile a kernel for a case, compare its results, and time it for `limit` seconds."""
    inputs = make_inputs(case)

    attend = functools.partial(kernel(name), case)
    backward = work == "fwd+bwd"
    function = forward_and_backward(attend, len(inputs) - 1) if backward else attend
    program = Program(function, inputs if backward else inputs[1:])
    result: Result = {
        "seconds_traced": program.seconds_traced,
        "seconds_compiled": program.seconds_compiled,
        "bytes_of_temporaries": program.temporaries,
    }
    memory = jax.devices()[0].memory_stats() or {}
    if program.temporaries > MEMORY * memory.get("bytes_limit", float("inf")):
        size = program.temporaries / 1e9
        return result | {"status": DECLINED, "message": f"it takes {size:.0f} GB of temporaries."}
    results = program()
    digests = [digest(results), digest(program())]
    result["differences"] = differences(case, work, inputs, results)
    del results
    seconds = times(program, limit)
    return result | {
        "status": MEASURED,
        "digest": digests[0],
        "deterministic": digests[0] == digests[1],
        "seconds": seconds,
        "median": statistics.median(seconds),
    }


def probe(cases: Sequence[Case]) -> dict[str, Any]:
    """The device, the versions, our implementations, what they decline and which are chosen."""
    chosen, declined, names = {}, {}, []
    for case in cases:
        _, *arrays = make_inputs(case)
        query, key, value, *slopes = arrays
        with contextlib.redirect_stdout(io.StringIO()):
            found = flax_attn.explain(query, key, value, **options_of(case, *slopes or [None]))
        chosen[case.name] = found.implementation
        names = sorted({found.implementation, *found.refusals} - {FEW_QUERIES})
        declined[case.name] = {}
        for name in names:
            try:
                jax.jit(functools.partial(ours, name, case)).lower(*arrays)
            except NotImplementedError as error:
                declined[case.name][name] = first_line(error)
    device = jax.devices()[0]
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "versions": versions | {"python": sys.version.split()[0]},
        "implementations": names,
        "chosen": chosen,
        "declined": declined,
    }


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def main(name: str, cache: str, limit: str, cases: str, jobs: str) -> None:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    known = {case[0]: Case(*case) for case in json.loads(cases)}

    def say(message: dict[str, Any]) -> None:
        print("\n" + json.dumps(message), flush=True)

    for job in json.loads(jobs):
        say({"begin": job})
        try:
            if name == PROBE:
                result = {"status": MEASURED, **probe(list(known.values()))}
            else:
                result = measure(name, known[job[0]], job[1], float(limit))
        except Exception as error:  # the kernel declines, or the device is out of memory
            status = DECLINED if isinstance(error, NotImplementedError) else FAILED
            result = {"status": status, "message": first_line(error)}
        say({"end": job, **result})
        if result["status"] == FAILED:
            return  # what failed may have left the device in a state in which all others fail


if __name__ == "__main__":
    main(*sys.argv[1:])
