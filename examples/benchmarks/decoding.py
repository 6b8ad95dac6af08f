"""How long one step of decoding takes, beside memory bandwidth, `jax.nn`, PyTorch and Flax.

    python examples/benchmarks/decoding.py               # some 10 minutes on 2 quiet cores
    python examples/benchmarks/decoding.py --model       # tokens per second beside transformers
    python examples/benchmarks/decoding.py --module      # MultiHeadAttention beside Flax's
    python examples/benchmarks/decoding.py --eager       # calls without jit

A step appends one token of each sequence to a cache and attends to all tokens in it; the cache is
donated. The floor is the time to copy keys and values once, by NumPy. `jax.nn` and PyTorch get
arrays that are filled already, in the layout of each; PyTorch's heads are grouped by `enable_gqa`.
A number is (median seconds of the other) / (median seconds of ours): above 1, ours is faster. For
the floor it is (ours) / (floor), and "512 of S" is (a cache of S that holds 512 tokens) / (a cache
of 512 that is full).

On 2 cores of an Intel Xeon with AMX you will see, in float32:

                            time / floor    jax.nn       torch        512 of S
    grouped-4096, batch 1       1.0           3.9         0.9           2.3
    equal-4096, batch 8         0.4           7.9         0.9           1.9
    grouped-16384, batch 1      0.5           8.2         0.9           2.4
    equal-16384, batch 8        0.8           6.9         0.7           2.6

with JAX 0.12 (torch: beside JAX 0.10). In bfloat16 a step takes 1.3 to 4 times the floor: XLA for
CPUs converts keys and values to float32. A paged or 8-bit cache takes 5 times as long as a
contiguous one in float32, since it is gathered or converted first. A cache that is filled in part
is read in part, but XLA copies that part. SmolLM2 writes 2.6 times as many tokens per second as
transformers does, and reads a prompt of 2,048 tokens 1.5 times as fast; with bfloat16 weights it
writes a third of that. `MultiHeadAttention` is 1.8 times as fast as Flax's, 1.6 with gradients, and
a call without `jit` takes half the time of `jax.nn`.

`--model` needs `pip install "flax-attn[generate]" transformers accelerate` and PyTorch, which comes
with `pip install "flax-attn[peers]"`. `--smoke` does all but that with tiny sizes in a minute.
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
from _harness import Harness, Program, forward_and_backward, progress

import flax_attn
import flax_attn.nnx
from flax_attn import Coords, caches, masks

sys.path.append(str(Path(__file__).parents[1]))  # for `generate`

LENGTHS, BATCHES = (4096, 16384), (1, 8)
HEADS = {"grouped": (16, 4, 128), "equal": (16, 16, 64)}  # N, K, D
FILLED = 512
BURST = 0.05  # seconds of calls in a row
KINDS = ("contiguous", "rolling", "paged", "int8")
PAGE_SIZE = 64
PROMPT_LENGTH, NUM_TOKENS, PREFILL_LENGTH = 48, 32, 2048  # of --model


class Step:
    """A compiled step of decoding with a cache that holds `filled` tokens."""

    def __init__(self, cache: caches.Cache, filled: int, num_heads: int, dtype: Any):
        batch, (num_kv_heads, head_dim) = cache.batch[0], cache.keys.shape[-2:]
        rng = np.random.default_rng(0)

        def tokens(length: int, heads: int) -> jax.Array:
            x = rng.standard_normal((batch, length, heads, head_dim), np.float32)
            return jnp.asarray(x, dtype)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(cache: Any, query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
            cache = cache.truncate(filled - 1)
            return cache.attend(query, key, value, mask=masks.Causal())

        self._step = step
        self._new = tokens(1, num_heads), tokens(1, num_kv_heads), tokens(1, num_kv_heads)
        fill = jax.jit(lambda cache, key, value: cache.append(key, value), donate_argnums=0)
        held = [tokens(filled, num_kv_heads) for _ in range(2)]
        self.cache = fill(cache, *held)
        self.keys, self.values = (np.asarray(x, np.float32) for x in held)
        self.query = self._new[0]

    def __call__(self) -> jax.Array:
        """One step."""
        output, self.cache = self._step(self.cache, *self._new)
        return jax.block_until_ready(output)


def make_cache(kind: str, capacity: int, batch: int, K: int, D: int, dtype: Any) -> caches.Cache:
    options: dict[str, Any] = {"num_kv_heads": K, "head_dim": D, "batch": batch, "dtype": dtype}
    if kind == "paged":
        pages = capacity // PAGE_SIZE * batch
        return caches.PagedCache.create(pages, PAGE_SIZE, capacity=capacity, **options)
    make: dict[str, Any] = {
        "contiguous": caches.KVCache.create,
        "rolling": caches.RollingCache.create,
        "int8": caches.QuantizedCache.create,
    }
    return make[kind](capacity, **options)


def peers(step: Step, dtype: str) -> dict[str, Callable[[], Any]]:
    """Attention to full arrays: `jax.nn`, and PyTorch where it is installed."""
    arrays = [jnp.asarray(x, dtype) for x in (step.query, step.keys, step.values)]
    calls: dict[str, Any] = {"jax.nn": Program(jax.nn.dot_product_attention, arrays)}
    if importlib.util.find_spec("torch") is not None and jax.default_backend() == "cpu":
        import torch
        from torch.nn.functional import scaled_dot_product_attention as attend

        q, k, v = (
            torch.from_numpy(np.asarray(x, np.float32)).to(getattr(torch, dtype)).transpose(1, 2)
            for x in arrays
        )
        q, k, v = (x.contiguous() for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        calls["torch"] = torch.no_grad()(lambda: attend(q, k, v, enable_gqa=grouped))
    return calls


def copy_of(step: Step, dtype: str) -> Callable[[], None]:
    """Copies keys and values once."""
    sources = [np.asarray(jnp.asarray(x, dtype)) for x in (step.keys, step.values)]
    targets = [np.empty_like(x) for x in sources]
    return lambda: [np.copyto(t, s) for t, s in zip(targets, sources, strict=True)] and None


def compare_steps(harness: Harness, dtype: str) -> None:
    """One step of decoding over full caches, and over one that holds few tokens."""
    lengths, batches, heads = LENGTHS, BATCHES, HEADS
    if harness.smoke:
        lengths, batches, heads = (1024,), (2,), {"grouped": (4, 2, 16)}
    row = harness.table(f"step, {dtype}", "ms", "/ floor", "jax.nn", "torch", "512 of S")
    cases = [(s, b, h) for s in lengths for b in batches for h in heads]
    for length, batch, kind in progress(cases, "steps"):
        N, K, D = heads[kind]
        full, part, small = (
            Step(make_cache("contiguous", capacity, batch, K, D, dtype), filled, N, dtype)
            for capacity, filled in ((length, length), (length, FILLED), (FILLED, FILLED))
        )
        calls = {"ours": full, "part": part, "small": small, "floor": copy_of(full, dtype)}
        times = harness.measure(calls | peers(full, dtype), BURST)
        torch = f"{times.ratio('torch', 'ours'):.2f}" if "torch" in times.seconds else "-"
        row(
            f"{kind}-{length}, batch {batch}",
            times.milliseconds("ours"),
            f"{times.ratio('ours', 'floor'):.2f}",
            f"{times.ratio('jax.nn', 'ours'):.2f}",
            torch,
            f"{times.ratio('part', 'small'):.2f}",
        )


def compare_caches(harness: Harness, dtype: str) -> None:
    """A step with each kind of cache, in terms of the contiguous one."""
    length, batch, (N, K, D) = 4096, 1, HEADS["grouped"]
    if harness.smoke:
        length, (N, K, D) = 1024, (4, 2, 16)
    steps = {
        kind: Step(make_cache(kind, length, batch, K, D, dtype), length, N, dtype) for kind in KINDS
    }
    times = harness.measure(steps, BURST)
    row = harness.table(f"cache of {length}, {dtype}", "ms", "/ contiguous")
    for kind in KINDS:
        row(kind, times.milliseconds(kind), f"{times.ratio(kind, 'contiguous'):.2f}")


def compare_modules(harness: Harness) -> None:
    """MultiHeadAttention, causal, in terms of Flax's own."""
    batch, length, num_heads, head_dim = (1, 64, 2, 8) if harness.smoke else (2, 512, 8, 64)
    width = num_heads * head_dim
    x, ct = np.random.default_rng(0).standard_normal((2, batch, length, width), np.float32)
    row = harness.table("MultiHeadAttention, float32", "ms", "Flax")
    mask = flax.nnx.make_causal_mask(np.ones((batch, length)))
    for work in ("fwd", "fwd+bwd"):
        calls: dict[str, Any] = {}
        for name, made, options in (
            ("ours", flax_attn.nnx.MultiHeadAttention, {"is_causal": True}),
            ("flax", flax.nnx.MultiHeadAttention, {"mask": mask, "decode": False}),
        ):
            graph, state = flax.nnx.split(made(num_heads, width, rngs=flax.nnx.Rngs(0)))

            def function(x: Any, state: Any, graph: Any = graph, options: Any = options) -> Any:
                return flax.nnx.merge(graph, state)(x, **options)

            if work == "fwd":
                calls[name] = Program(function, (x, state))
            else:
                calls[name] = Program(forward_and_backward(function, 2), (ct, x, state))
        times = harness.measure(calls, BURST)
        row(work, times.milliseconds("ours"), f"{times.ratio('flax', 'ours'):.2f}")


def compare_eager(harness: Harness) -> None:
    """Calls without `jit` at the sizes of decoding, in terms of `jax.nn`."""
    row = harness.table("eager call", "ms", "/ jax.nn")
    for length in (512, 4096):
        q, k, v = (
            jnp.ones((1, size, heads, 64)) for size, heads in ((1, 8), (length, 8), (length, 8))
        )
        here, keys = Coords.arange(1, offset=length - 1), Coords.arange(length)
        located: dict[str, Any] = {"query_coords": here, "key_coords": keys}

        def ours(q: Any = q, k: Any = k, v: Any = v, located: Any = located) -> Any:
            mask = masks.Causal()
            output = flax_attn.dot_product_attention(q, k, v, mask=mask, **located)
            return jax.block_until_ready(output)

        def theirs(q: Any = q, k: Any = k, v: Any = v) -> Any:
            return jax.block_until_ready(jax.nn.dot_product_attention(q, k, v))

        times = harness.measure({"ours": ours, "jax.nn": theirs}, BURST)
        row(f"{length} keys", times.milliseconds("ours"), f"{times.ratio('ours', 'jax.nn'):.2f}")


def compare_model(harness: Harness) -> None:
    """Tokens per second of SmolLM2, and the time of a prompt, beside transformers on PyTorch."""
    import torch
    from transformers import AutoModelForCausalLM

    from generate import Generator, load_model, make_caches
    from language_models.pretrained_smollm2 import fetch_smollm2

    path = fetch_smollm2()
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    rng = np.random.default_rng(0)
    prompt, long = (rng.integers(100, 4000, n).tolist() for n in (PROMPT_LENGTH, PREFILL_LENGTH))
    calls: dict[str, Callable[[], Any]] = {}
    for dtype in ("float32", "bfloat16"):
        model, _ = load_model(path, dtype=jnp.dtype(dtype))
        generator = Generator(model)

        def ours(
            tokens: list[int],
            count: int,
            model: Any = model,
            generator: Any = generator,
            dtype: str = dtype,
        ) -> None:
            made = make_caches(model, "contiguous", len(tokens) + count, 1, dtype)
            for _ in generator([tokens], made, count):
                pass

        calls[f"ours, {dtype}"] = functools.partial(ours, prompt, NUM_TOKENS)
        calls[f"ours, {dtype}, prompt"] = functools.partial(ours, long, 1)
    for kind, options in (("dynamic", {}), ("static", {"cache_implementation": "static"})):
        calls[f"transformers, {kind}"] = torch.no_grad()(
            functools.partial(
                theirs.generate,
                torch.tensor([prompt]),
                max_new_tokens=NUM_TOKENS,
                min_new_tokens=NUM_TOKENS,
                do_sample=False,
                **options,
            )
        )
    calls["transformers, prompt"] = torch.no_grad()(
        lambda: theirs(torch.tensor([long]), use_cache=True, logits_to_keep=1)
    )
    times = harness.measure(calls)
    row = harness.table(f"SmolLM2, {NUM_TOKENS} tokens", "tokens/s", "/ dynamic")
    for name in calls:
        if not name.endswith("prompt"):
            rate = NUM_TOKENS / times.median(name)
            row(name, f"{rate:.1f}", f"{times.ratio('transformers, dynamic', name):.2f}")
    row = harness.table(f"prompt of {PREFILL_LENGTH} tokens", "ms", "transformers / it")
    for name in calls:
        if name.endswith("prompt"):
            ratio = times.ratio("transformers, prompt", name)
            row(name, times.milliseconds(name), f"{ratio:.2f}")


def main() -> None:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Harness.add_options(parser)
    for name, text in (
        ("model", "SmolLM2 beside transformers"),
        ("module", "MultiHeadAttention beside Flax's"),
        ("eager", "calls without jit"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    options = parser.parse_args()
    harness = Harness(options)
    parts: Mapping[str, Callable[[], None]] = {
        "model": lambda: compare_model(harness),
        "module": lambda: compare_modules(harness),
        "eager": lambda: compare_eager(harness),
    }
    chosen = [name for name in parts if getattr(options, name)]
    if not chosen:
        for dtype in ("float32", "bfloat16"):
            compare_steps(harness, dtype)
            compare_caches(harness, dtype)
        chosen = ["module", "eager"] if harness.smoke else []
    for name in chosen:
        parts[name]()
    harness.report()


if __name__ == "__main__":
    main()
