"""SmolLM2 in NNX gives the logits and the text of transformers, whatever the cache is."""

import functools

import numpy as np
import pytest
from flax import nnx
from torch_reference import torch
from transformers_reference import fetched, transformers

from generate import Generator, load_model, make_caches
from language_models.batches import packed, padded
from language_models.pretrained_smollm2 import fetch_smollm2
from tests.tolerances import assert_close

pytestmark = pytest.mark.parity

PROMPTS = (
    "What is attention in a neural network? Answer in two sentences.",
    "Name three colours.",
    "Write a haiku about the sea, the wind and a lighthouse keeper who never sleeps.",
)
NUM_TOKENS = 64
LOGITS = 1e-4  # relative to the largest


@pytest.fixture(scope="module")
def ours():
    return load_model(fetched(fetch_smollm2))


@pytest.fixture(scope="module")
def theirs():
    path = fetched(fetch_smollm2)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def prompts(ours):
    return [ours[1].encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]


@pytest.fixture(scope="module")
def expected_logits(theirs, prompts):
    with torch.no_grad():
        return [theirs(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]


@nnx.jit
def logits_of(model, tokens, coords):
    return model(tokens, None, coords)


def test_logits_are_those_of_transformers_for_padded_prompts(ours, prompts, expected_logits):
    logits = np.asarray(logits_of(ours[0], *padded(prompts)))
    for row, expected in zip(logits, expected_logits, strict=True):
        assert_close(row[: len(expected)], expected, LOGITS)


def test_logits_are_those_of_transformers_for_packed_prompts(ours, prompts, expected_logits):
    logits = np.asarray(logits_of(ours[0], *packed(prompts)))
    assert_close(logits[: sum(map(len, prompts))], np.concatenate(expected_logits), LOGITS)


@pytest.fixture(scope="module")
def expected_tokens(theirs, prompts):
    """The tokens that transformers generates for the second prompt, whose answer is long."""
    with torch.no_grad():
        generated = theirs.generate(
            torch.tensor([prompts[1]]), max_new_tokens=NUM_TOKENS, do_sample=False
        )
    tokens = generated[0, len(prompts[1]) :].tolist()
    assert len(tokens) == NUM_TOKENS
    return tokens


@functools.cache
def generator(model):
    return Generator(model)


def generated(model, prompts, kind):
    capacity = max(map(len, prompts)) + NUM_TOKENS
    layer_caches = make_caches(model, kind, capacity, len(prompts), np.float32)
    tokens = np.stack(list(generator(model)(prompts, layer_caches, NUM_TOKENS)))
    return tokens.T.tolist()


@pytest.mark.parametrize("kind", ["contiguous", "rolling", "paged"])
def test_generated_tokens_are_those_of_transformers(ours, prompts, expected_tokens, kind):
    assert generated(ours[0], prompts[1:2], kind) == [expected_tokens]


def test_an_8_bit_cache_gives_nearly_the_logits_of_transformers(ours, prompts, theirs):
    """Greedy tokens may differ from some token on; the share of equal ones is printed."""
    prompt = prompts[0]
    (tokens,) = generated(ours[0], [prompt], "int8")
    with torch.no_grad():
        logits = theirs(torch.tensor([prompt + tokens])).logits[0].numpy()
    likeliest = logits[len(prompt) - 1 : -1].argmax(axis=-1)
    share = np.mean(likeliest == tokens)
    print(f"8-bit cache: {share:.0%} of {NUM_TOKENS} tokens are the likeliest of transformers")
    assert share > 0.9


@pytest.mark.parametrize("kind", ["contiguous", "rolling", "paged"])
def test_a_batch_of_prompts_of_different_lengths_is_answered_as_one_by_one(ours, prompts, kind):
    alone = [generated(ours[0], [prompt], "contiguous")[0] for prompt in prompts]
    assert generated(ours[0], prompts, kind) == alone


def test_no_step_compiles_again(ours, prompts):
    generated(ours[0], prompts[:1], "contiguous")
    count = generator(ours[0])._step._cache_size()
    generated(ours[0], prompts[:1], "contiguous")
    assert generator(ours[0])._step._cache_size() == count
