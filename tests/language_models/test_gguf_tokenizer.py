"""Texts and chats become the tokens that the file describes, and come back as they were."""

import numpy as np
import pytest

from language_models.gguf_llama import open_llama
from language_models.gguf_tokenizer import BYTES, GGUFTokenizer
from tests.language_models.gguf_files import TOKENS, write_llama

USER = {"role": "user", "content": "hello <b>"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return GGUFTokenizer(open_llama(write_llama(tmp_path_factory.mktemp("gguf") / "a.gguf")))


def spelled(tokens):
    return [TOKENS[i] for i in tokens]


def test_bytes_have_a_character_each():
    assert sorted(BYTES.values()) == list(range(256))
    assert (BYTES["A"], BYTES["Ġ"], BYTES["Ċ"], BYTES["ÿ"]) == (65, 32, 10, 255)


def test_texts_are_cut_and_merged(tokenizer):
    assert spelled(tokenizer.encode("hello world")) == [
        *("<|begin_of_text|>", "hello", "Ġw", "o", "r", "l", "d")
    ]
    assert spelled(tokenizer.encode("1234<think>h<|eot_id|>"))[1:] == [
        *("123", "4", "<think>", "h", "<|eot_id|>")
    ]


def test_digits_are_one_token_each_in_the_vocabulary_of_smollm(tmp_path):
    path = write_llama(tmp_path / "a.gguf", pre="smollm")
    tokens = GGUFTokenizer(open_llama(path)).encode("hello 123")
    assert spelled(tokens)[1:] == ["hello", "Ġ", "1", "2", "3"]


def test_special_tokens_are_known(tokenizer):
    assert spelled(sorted(tokenizer.end_ids)) == ["<|eot_id|>", "<|end_of_text|>"]
    assert tokenizer.bos_id == 0
    assert len(tokenizer) == len(TOKENS)


def test_a_stream_holds_back_unfinished_characters(tokenizer):
    tokens = tokenizer.encode("é🙂!")[1:]
    stream = tokenizer.stream()
    texts = [stream.push(token) for token in tokens]
    assert spelled(tokens) == ["Ã", "©", "ðŁ", "Ļ", "Ĥ", "!"]
    assert texts == ["", "é", "", "", "🙂", "!"]
    assert stream.close() == ""


def test_labels_show_each_token(tokenizer):
    tokens = tokenizer.encode("hello w\né<|eot_id|>")
    assert tokenizer.labels(tokens) == [
        *("<|begin_of_text|>", "hello", " w", "⏎", "�", "�", "<|eot_id|>")
    ]


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer):
    """Some models have more rows in their embedding than tokens."""
    assert tokenizer.stream().push(len(TOKENS) + 5) == tokenizer.decode([len(TOKENS) + 5]) == ""


def test_a_stream_gives_what_decoding_at_once_gives(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens = rng.integers(0, len(TOKENS), rng.integers(0, 12)).tolist()
        stream = tokenizer.stream()
        text = "".join(map(stream.push, tokens)) + stream.close()
        assert text == tokenizer.decode(tokens), spelled(tokens)


def test_a_chat_is_written_by_the_template(tokenizer):
    assert tokenizer.chat([USER]) == ('<|begin_of_text|>[user] "hello <b>"<|eot_id|>\n[assistant] ')
    assert not tokenizer.chat([USER], add_answer=False).endswith("[assistant] ")
    tokens = tokenizer.encode_chat([USER])
    assert tokens.count(tokenizer.bos_id) == 1
    assert tokens == tokenizer.encode(tokenizer.chat([USER]))[1:]


def test_chats_that_the_template_refuses_are_errors(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"messages must fit the template, .* no system prompt"):
        tokenizer.chat([{"role": "system", "content": ""}])
    with pytest.raises(ValueError, match=r"chat: messages must fit the template, .* Undefined"):
        tokenizer.chat([{"role": "user"}])
    with pytest.raises(ValueError, match="chat: messages must not be empty"):
        tokenizer.chat([])
    path = write_llama(tmp_path / "a.gguf", template="")
    with pytest.raises(ValueError, match="chat: the file must have a chat template, and does not"):
        GGUFTokenizer(open_llama(path)).chat([USER])


def test_templates_run_in_a_sandbox(tmp_path):
    path = write_llama(tmp_path / "a.gguf", template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match=r"chat: messages must fit the template, .*unsafe"):
        GGUFTokenizer(open_llama(path)).chat([USER])


@pytest.mark.parametrize("options", [{"model": "llama"}, {"pre": "tekken"}])
def test_other_vocabularies_are_refused(tmp_path, options):
    reader = open_llama(write_llama(tmp_path / "a.gguf", **options))
    (found,) = options.values()
    with pytest.raises(NotImplementedError, match=f"ggml.model must be 'gpt2' .*, got .*'{found}'"):
        GGUFTokenizer(reader)
