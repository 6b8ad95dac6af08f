"""Train a small language model on the English text that Python ships, and let it write.

    python examples/char_lm.py

The text is the documentation behind `help()`, some 600,000 characters, of which the last tenth is
held out. The model is `language_models/llama.py` with 0.9 million parameters: rotary positions,
four query heads for two key heads, and a window of 64 characters (`language_models/characters.py`).
After 600 steps, two minutes on 2 cores of an Intel Xeon, the loss on the held-out text is 1.4 nats
per character (it begins at 4.9), and it writes, with a rolling cache that keeps no more than the
window,

    The sequence of the sequences in the result for result list call to the exception is
    implemented, and not evaluated only attribute, for and

`--checkpoint FOLDER` saves the model every 100 steps and at the end, and the same command goes on
where it ended. `--prompt TEXT` begins the text.

    python examples/char_lm.py --smoke    # 4 steps: does it run?

Needs `pip install "flax-attn[generate]"`.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_attn import caches
from language_models import characters
from language_models.characters import BATCH, CONFIG, STEPS, WINDOW
from language_models.llama import Llama

NUM_CHARACTERS, TEMPERATURE = 400, 0.7

evaluate = nnx.jit(characters.loss_of)


def held_out_loss(model: Llama, text: np.ndarray) -> float:
    """The loss on all of the held-out text, in batches."""
    length = CONFIG.context_length + 1
    pieces = text[: len(text) // (BATCH * length) * BATCH * length].reshape(-1, BATCH, length)
    return float(np.mean([evaluate(model, piece[:, :-1], piece[:, 1:]) for piece in pieces]))


def write(model: Llama, prompt: str, num_characters: int, seed: int) -> str:
    """Continue a text, character by character, with a rolling cache."""

    @nnx.jit
    def step(model: Llama, tokens: jax.Array, layer_caches: Any, key: jax.Array) -> Any:
        logits, layer_caches = model(tokens, layer_caches, last_only=True)
        return jax.random.categorical(key, logits[:, -1] / TEMPERATURE), layer_caches

    layer_caches = model.make_caches(functools.partial(caches.RollingCache.create, WINDOW), batch=1)
    tokens = jnp.asarray([list(prompt.encode("ascii", "ignore"))])
    written = []
    for key in jax.random.split(jax.random.key(seed), num_characters):
        new, layer_caches = step(model, tokens, layer_caches, key)
        written.append(chr(int(new[0])))
        tokens = new[:, None]
    return prompt + "".join(written)


def main() -> None:
    summary, details = __doc__.split("\n", maxsplit=1)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="in all")
    parser.add_argument("--prompt", default="The ", help="how the text begins")
    parser.add_argument("--checkpoint", type=Path, help="folder to save to and to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="4 steps")
    args = parser.parse_args()
    if not args.prompt.encode("ascii", "ignore"):
        parser.error("prompt: it has no ASCII character. Write some.")
    steps, num_characters = (4, 20) if args.smoke else (args.steps, NUM_CHARACTERS)
    model, optimizer = characters.make_model(CONFIG, args.seed, steps)
    characters.train(model, optimizer, steps, args.seed, folder=args.checkpoint)
    _, held_out = characters.load_text()
    print(f"Held-out loss: {held_out_loss(model, held_out[:5000] if args.smoke else held_out):.2f}")
    print(write(model, args.prompt, num_characters, args.seed))


if __name__ == "__main__":
    main()
