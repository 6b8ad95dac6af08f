"""A GGUF file gives the weights, the tokens and the chats that transformers reads from it."""

import keyword
import pathlib
import re

import numpy as np
import pytest
from torch_reference import torch
from transformers_reference import fetched, transformers

from language_models.gguf_llama import open_llama, read_config, read_weights
from language_models.gguf_tokenizer import GGUFTokenizer
from language_models.pretrained_smollm2 import fetch_smollm2
from tests.language_models.gguf_files import random_tensors, write_llama

pytestmark = pytest.mark.parity

OUTER = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
INNER = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
TEXTS = [
    "What is attention in a neural network? Answer in two sentences.",
    "I'm sure they'll say we've DON'T and it's 'quoted'",
    "1 12 123 3.14159 1e-6 0x1F 2024-02-29 10:15:00 1,000,000",
    "注意力机制是什么？猫坐在垫子上。",
    "日本語のテキスト、カタカナ、한국어 텍스트, العربية, עברית, ελληνικά, русский, ไทย",
    "🙂🙃 👩‍👩‍👧‍👦 🇨🇭 e\u0301 \u200b\ufeff",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|> <|not_a_token|> <repo_name>x<file_sep>",
    *(" " * n + "x" + " " * n for n in (1, 2, 3, 4, 8, 17)),
    *("\n" * n for n in (1, 2, 3, 5)),
    *("", " ", "\t", "\r\n", " \n \n", "a\tb\r\nc\n\n  d", "\u00a0\u3000x", "\x00\x01\x7f"),
    "def f(x: int) -> list[int]:\n\treturn [i ** 2 for i in range(x) if i % 3 != 0]  # squares",
    '{"a": [1, 2.5, null], "b": {"c": "d\\n"}}',
    "∑ᵢ xᵢ ≤ ∫ f(x) dx → ∞, naïve café, Straße, œuvre, “quotes” — dash…",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\Temp\\x.txt",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ========== ---------- ..........",
]
USER = {"role": "user", "content": "What is 2 + 2?\n  'Think' <b>."}
ANSWER = {"role": "assistant", "content": "4 🙂"}
SYSTEM = {"role": "system", "content": "Be brief."}


def varied_texts():
    """The texts above, lines of this file, words, and characters of many scripts."""
    yield from TEXTS
    yield from pathlib.Path(__file__).read_text().splitlines(keepends=True)
    yield " ".join(keyword.kwlist)
    rng = np.random.default_rng(0)
    for first in range(0x20, 0x3000, 0x80):
        characters = [chr(i) for i in range(first, first + 0x80)]
        yield "".join(characters)
        yield "".join(rng.choice([*characters, " ", "\n", "a", "7"], 40))


def without_far_digits(text):
    """A text without digits beyond 0 ... 9, which transformers does not cut as the model's own."""
    return "".join(c for c in text if c in "0123456789" or not c.isnumeric())


@pytest.fixture(scope="module")
def path():
    return fetched(fetch_smollm2)


@pytest.fixture(scope="module")
def tokenizers(path):
    """Ours and that of transformers."""
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return GGUFTokenizer(open_llama(path)), theirs


def test_texts_have_the_tokens_of_transformers(tokenizers):
    ours, theirs = tokenizers
    texts = [without_far_digits(text) for text in varied_texts()]
    assert len(texts) > 300
    for text in texts:
        tokens = theirs(text)["input_ids"]
        assert ours.encode(text) == tokens, text
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True), text
        stream = ours.stream()
        assert "".join(map(stream.push, tokens)) + stream.close() == ours.decode(tokens), text


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [USER, ANSWER]])
def test_chats_are_those_of_transformers(tokenizers, messages):
    ours, theirs = tokenizers
    for add_answer in (True, False):
        expected = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_answer
        )
        assert ours.chat(messages, add_answer=add_answer) == expected
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == expected


def to_transformers(name, weight):
    """Our name and weight in the form of transformers: `[out, in]`, rotated in halves."""
    kind = name.rpartition(".")[2]
    if weight.ndim == 1 or kind == "embedding":
        return weight
    if kind in ("query", "key"):  # features 2i and 2i + 1 -> i and D/2 + i
        weight = np.concatenate([weight[..., 0::2], weight[..., 1::2]], axis=-1)
    in_features = np.prod(weight.shape[:2]) if kind == "out" else weight.shape[0]
    return weight.reshape(in_features, -1).T


def their_name(name):
    if name in OUTER:
        return f"{OUTER[name]}.weight"
    layer, part = re.fullmatch(r"layers\.(\d+)\.(\w+)", name).groups()
    return f"model.layers.{layer}.{INNER[part]}.weight"


def check_weights(path):
    """Ours are those of transformers, and the sizes are those of its configuration."""
    reader = open_llama(path)
    config = read_config(reader)
    weights = read_weights(reader, config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    theirs = model.config
    assert config.num_layers == theirs.num_hidden_layers
    assert config.features == theirs.hidden_size
    assert config.mlp_features == theirs.intermediate_size
    assert config.num_heads == theirs.num_attention_heads
    assert config.num_kv_heads == theirs.num_key_value_heads
    assert config.head_dim == model.model.layers[0].self_attn.head_dim
    assert config.vocab_size == theirs.vocab_size
    assert config.context_length == theirs.max_position_embeddings
    assert config.norm_epsilon == pytest.approx(theirs.rms_norm_eps, rel=1e-6)
    assert config.rotary_base == theirs.rope_parameters["rope_theta"]
    assert config.tied_embeddings == theirs.tie_word_embeddings

    state = dict(model.named_parameters())  # a tied embedding once
    assert {their_name(name) for name in weights} == state.keys()
    for name, weight in weights.items():
        expected = state[their_name(name)].detach().numpy()
        np.testing.assert_array_equal(to_transformers(name, weight), expected, err_msg=name)


def test_weights_are_those_of_transformers(path):
    check_weights(path)


def test_random_weights_without_a_tied_embedding_are_those_of_transformers(tmp_path):
    quantized = [name for name, x in random_tensors().items() if x.ndim == 2][::2]
    check_weights(write_llama(tmp_path / "small.gguf", quantized=quantized))


def test_texts_of_the_vocabulary_of_llama_3_have_the_tokens_of_transformers(tmp_path):
    path = write_llama(tmp_path / "small.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = GGUFTokenizer(open_llama(path))
    for text in varied_texts():
        text = text.replace("<|endoftext|>", "")  # which transformers adds to the vocabulary
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == [ours.bos_id, *expected], text
