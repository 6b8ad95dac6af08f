"""Train a small language model on the English text that Python ships, and let it write.

    python examples/char_lm.py

The text is the documentation behind `help()`, some 600,000 characters, of which the last tenth is
held out. The model is `language_models/llama.py` with 0.9 million parameters: rotary positions,
four query heads for two key heads, and a window of 128 characters. After 700 steps, two minutes on
2 CPU cores, the loss on the held-out text is XX nats per character (it begins at 4.9), and it
writes

    SAMPLE

with a rolling cache, which keeps no more than the window. `--checkpoint FOLDER` saves the model
every 100 steps, and the same command goes on where it ended. `--prompt TEXT` begins the text.

    python examples/char_lm.py --smoke    # 4 steps: does it run?

Needs `pip install "flax-attn[generate]"`.
"""

import argparse
import functools
import pydoc_data.topics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
from flax import nnx
from tqdm import tqdm

from flax_attn import caches, masks
from language_models.gguf_llama import LlamaConfig
from language_models.llama import Llama

WINDOW = 64  # characters that a character attends to, itself included
CONFIG = LlamaConfig(
    num_layers=4,
    features=128,
    mlp_features=384,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=128,  # ASCII
    context_length=128,
    norm_epsilon=1e-5,
    tied_embeddings=True,
    rotary_base=10_000.0,
    rotary_layout="half",
)
BATCH, STEPS, WARMUP, LEARNING_RATE = 8, 600, 50, 4e-3
EVERY, NUM_CHARACTERS, TEMPERATURE = 100, 400, 0.7


def load_text() -> tuple[np.ndarray, np.ndarray]:
    """Characters to train on, and held-out ones."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)
    end = len(codes) * 9 // 10
    return codes[:end], codes[end:]


def sample_batch(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random pieces of the text `[BATCH, context_length + 1]`."""
    length = CONFIG.context_length + 1
    starts = rng.integers(0, len(text) - length, BATCH)
    return text[starts[:, None] + np.arange(length)]


def loss_of(model: Llama, batch: jax.Array) -> jax.Array:
    """The mean of −log p(next character), in nats."""
    logits = model(batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


@functools.partial(nnx.jit, donate_argnums=(0, 1))
def train_step(model: Llama, optimizer: nnx.Optimizer, batch: jax.Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(model, batch)
    optimizer.update(model, gradients)
    return loss


evaluate = nnx.jit(loss_of)


def held_out_loss(model: Llama, text: np.ndarray) -> float:
    """The loss on all of the held-out text, in batches."""
    length = BATCH * (CONFIG.context_length + 1)
    batches = text[: len(text) // length * length].reshape(-1, BATCH, CONFIG.context_length + 1)
    return float(np.mean([evaluate(model, batch) for batch in batches]))


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
    text, held_out = load_text()

    model = Llama(CONFIG, mask=masks.Window(WINDOW - 1), rngs=nnx.Rngs(args.seed))
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, WARMUP, max(steps, WARMUP + 1))
    optimizer = nnx.Optimizer(model, optax.adamw(schedule), wrt=nnx.Param)
    manager, first = None, 0
    if args.checkpoint is not None:
        keep = orbax.checkpoint.CheckpointManagerOptions(max_to_keep=1)
        manager = orbax.checkpoint.CheckpointManager(args.checkpoint.resolve(), options=keep)
        if manager.latest_step() is not None:
            first = manager.latest_step()
            state = nnx.to_pure_dict(nnx.state((model, optimizer)))
            restore = orbax.checkpoint.args.StandardRestore(state)
            nnx.update((model, optimizer), manager.restore(first, args=restore))
            print(f"Going on after {first} steps.")

    bar = tqdm(range(first, steps), initial=first, total=steps)
    for step in bar:
        batch = sample_batch(text, np.random.default_rng((args.seed, step)))
        loss = train_step(model, optimizer, batch)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{float(loss):.2f}")
        if manager is not None and ((step + 1) % EVERY == 0 or step + 1 == steps):
            state = nnx.to_pure_dict(nnx.state((model, optimizer)))
            manager.save(step + 1, args=orbax.checkpoint.args.StandardSave(state))
    if manager is not None:
        manager.close()
    print(f"Held-out loss: {held_out_loss(model, held_out[:5000] if args.smoke else held_out):.2f}")
    print(write(model, args.prompt, num_characters, args.seed))


if __name__ == "__main__":
    main()
