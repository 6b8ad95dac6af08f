"""A small character model of the English text that Python ships: the text, the sizes, the training.

The text is the documentation behind `help()`, some 600,000 characters.
"""

import functools
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
from flax import nnx
from tqdm import tqdm

from flax_attn import masks
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
EVERY = 100  # steps, from one checkpoint to the next


def load_text() -> tuple[np.ndarray, np.ndarray]:
    """Characters to train on, and held-out ones: the last tenth."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)
    end = len(codes) * 9 // 10
    return codes[:end], codes[end:]


def sample_batch(text: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random pieces of the text and the next character of each of theirs, `[BATCH, T]` both."""
    length = CONFIG.context_length + 1
    starts = rng.integers(0, len(text) - length, BATCH)
    pieces = text[starts[:, None] + np.arange(length)]
    return pieces[:, :-1], pieces[:, 1:]


def make_model(
    config: LlamaConfig, seed: int, steps: int, **options: Any
) -> tuple[Llama, nnx.Optimizer]:
    """The model and its optimizer. `options` are those of the attention."""
    model = Llama(config, mask=masks.Window(WINDOW - 1), rngs=nnx.Rngs(seed), **options)
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, WARMUP, max(steps, WARMUP + 1))
    return model, nnx.Optimizer(model, optax.adamw(schedule), wrt=nnx.Param)


def loss_of(model: Llama, tokens: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean of −log p(next character), in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), targets).mean()


@functools.partial(nnx.jit, donate_argnums=(0, 1))
def train_step(
    model: Llama, optimizer: nnx.Optimizer, tokens: jax.Array, targets: jax.Array
) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(model, tokens, targets)
    optimizer.update(model, gradients)
    return loss


def train(
    model: Llama,
    optimizer: nnx.Optimizer,
    steps: int,
    seed: int,
    *,
    folder: Path | None = None,
    every: int = EVERY,
    place: Callable[[np.ndarray], jax.Array] = jnp.asarray,
    title: str | None = "",
) -> dict[int, float]:
    """Train up to a number of steps, counted from the beginning.

    Args:
      model: Is changed, as is its optimizer.
      optimizer: That of `make_model`.
      steps: In all; those before the last checkpoint are not repeated.
      seed: Of the batches.
      folder: Where checkpoints are saved and looked for. They are restored to the devices of the
        model, whatever number of devices has saved them.
      every: Steps from one checkpoint to the next.
      place: Puts a batch on the devices.
      title: Of the progress bar; None for no bar.

    Returns:
      The loss before each step.
    """
    text, _ = load_text()
    manager, first = None, 0
    if folder is not None:
        keep = orbax.checkpoint.CheckpointManagerOptions(max_to_keep=1)
        manager = orbax.checkpoint.CheckpointManager(folder.resolve(), options=keep)
        if manager.latest_step() is not None:
            first = manager.latest_step()
            restore = orbax.checkpoint.args.StandardRestore(as_dict(model, optimizer))
            nnx.update((model, optimizer), manager.restore(first, args=restore))
            if title is not None:
                print(f"Going on after {first} steps.")
    losses = {}
    bar = tqdm(range(first, steps), title, initial=first, total=steps, disable=title is None)
    for step in bar:
        batch = sample_batch(text, np.random.default_rng((seed, step)))
        losses[step] = float(train_step(model, optimizer, *map(place, batch)))
        bar.set_postfix(loss=f"{losses[step]:.2f}", refresh=False)
        if manager is not None and ((step + 1) % every == 0 or step + 1 == steps):
            save = orbax.checkpoint.args.StandardSave(as_dict(model, optimizer))
            manager.save(step + 1, args=save)
    if manager is not None:
        manager.close()
    return losses


def as_dict(model: Llama, optimizer: nnx.Optimizer) -> Any:
    """All that is trained, as nested dictionaries of arrays."""
    return nnx.to_pure_dict(nnx.state((model, optimizer)))
