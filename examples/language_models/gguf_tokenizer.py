"""The tokenizer and the chat template of a GGUF file."""

import codecs
import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gguf
import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from language_models.gguf_llama import field

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # of tokenizer.ggml.token_type
# Control tokens that end an answer, whichever of them the file names as its end.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>")
# Names of special tokens in GGUF files, by those in chat templates.
SPECIAL = {name: name for name in ("bos", "eos", "eot", "eom")}
SPECIAL |= {"unk": "unknown", "pad": "padding"}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is cut before merging, by tokenizer.ggml.pre. For "smollm" transformers (5.24) does not
# cut digits if it reads a GGUF file. This matters only beyond the digits 0 ... 9, as for "²".
CUTS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


class GGUFTokenizer:
    """Texts and chats to tokens and back.

    Attributes:
      end_ids: The tokens that end an answer.
      bos_id: The token before a text, if the file wants one, or None.

    Raises:
      NotImplementedError: If the vocabulary is not one of bytes with merges, or cut in an unknown
        way.
    """

    def __init__(self, reader: gguf.GGUFReader):
        model, cut = (field(reader, f"tokenizer.ggml.{name}") for name in ("model", "pre"))
        if model != "gpt2" or cut not in CUTS:
            raise NotImplementedError(
                f"GGUFTokenizer: tokenizer.ggml.model must be 'gpt2' (bytes with merges) and "
                f"tokenizer.ggml.pre one of {sorted(CUTS)}, got {model!r} and {cut!r}. "
                f"Pass token ids of another tokenizer."
            )
        tokens = field(reader, "tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
        vocab = {token: i for i, token in enumerate(tokens)}
        self._tokenizer = Tokenizer(
            models.BPE(vocab=vocab, merges=merges, ignore_merges=cut == "llama-bpe")
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
        self._tokenizer.decoder = decoders.ByteLevel()
        types = field(reader, "tokenizer.ggml.token_type", [NORMAL] * len(tokens))
        for kind in (CONTROL, USER_DEFINED):
            self._tokenizer.add_tokens(
                [
                    AddedToken(token, normalized=False, special=kind == CONTROL)
                    for token, found in zip(tokens, types, strict=True)
                    if found == kind
                ]
            )
        self._control = {i for i, kind in enumerate(types) if kind == CONTROL}
        ids = {
            short: field(reader, f"tokenizer.ggml.{name}_token_id")
            for short, name in SPECIAL.items()
        }
        self.end_ids = frozenset(i for i in self._control if tokens[i] in ENDS) | {
            ids[short] for short in ("eos", "eot", "eom") if ids[short] is not None
        }
        self.bos_id = ids["bos"] if field(reader, "tokenizer.ggml.add_bos_token", False) else None
        self._special = {f"{short}_token": tokens[i] for short, i in ids.items() if i is not None}
        self._template = field(reader, "tokenizer.chat_template")

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Control tokens that are spelled out in it count as such."""
        begin = [] if self.bos_id is None else [self.bos_id]
        return begin + self._tokenizer.encode(text).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without control tokens; � for bytes that are no UTF-8."""
        return self._tokenizer.decode(list(tokens))

    def labels(self, tokens: Iterable[int]) -> list[str]:
        """A text for each token alone, control tokens included, for the axes of a picture."""
        spelled = (token_bytes(self._tokenizer.id_to_token(token)) for token in tokens)
        return [text.decode(errors="replace").replace("\n", "⏎") for text in spelled]

    def stream(self) -> "TextStream":
        """A decoder for tokens that come one at a time."""
        return TextStream(self._tokenizer, self._control)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_answer: bool = True) -> str:
        """The text of a conversation by the template of the file.

        The template may put a system prompt before it. Control tokens that are spelled out in a
        message count as such, so check messages of strangers.

        Args:
          messages: Such as `[{"role": "user", "content": "Hello"}]`.
          add_answer: If True, the text ends where the answer of the model begins.

        Returns:
          The text, for `encode_chat`.

        Raises:
          ValueError: If the file has no template, there are no messages, or the template refuses
            them.
        """
        if self._template is None:
            raise ValueError("chat: the file must have a chat template, and does not. Use encode.")
        if not messages:
            raise ValueError('chat: messages must not be empty. [{"role": "user", "content": ...}]')
        try:
            return (
                environment()
                .from_string(self._template)
                .render(messages=messages, add_generation_prompt=add_answer, **self._special)
            )
        except (jinja2.TemplateError, TypeError) as error:  # TypeError: content of a wrong kind
            raise ValueError(f"chat: messages must fit the template, which says: {error}") from None

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens of `chat(messages)`. The template itself writes the first token."""
        return self._tokenizer.encode(self.chat(messages)).ids


class TextStream:
    """Decodes tokens one at a time. A character whose bytes have not all come yet is held back.

    All texts together are that of `GGUFTokenizer.decode`. `tokenizers.decoders.DecodeStream` (0.23)
    loses bytes that are no UTF-8, and what it holds back at the end.

    Example:
      >>> stream = tokenizer.stream()
      >>> for token in tokens:
      ...     print(stream.push(token), end="", flush=True)
      >>> print(stream.close())
    """

    def __init__(self, tokenizer: Tokenizer, control: set[int]):
        self._tokenizer = tokenizer
        self._control = control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; none for a control token."""
        if token in self._control:
            return ""
        return self._utf8.decode(token_bytes(self._tokenizer.id_to_token(token)))

    def close(self) -> str:
        """What is held back at the end, as �."""
        return self._utf8.decode(b"", final=True)


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable characters of Latin-1 are their own bytes; the others follow from 256 on. Radford et
    al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


BYTES = byte_alphabet()


def token_bytes(token: str | None) -> bytes:
    """The bytes of a token; a token with other characters is spelled as it is.

    None, the text of an id beyond the vocabulary, has none.
    """
    if token is None:
        return b""
    if all(character in BYTES for character in token):
        return bytes(BYTES[character] for character in token)
    return token.encode()


@functools.cache
def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Where chat templates run, which are code from elsewhere: with the names that they expect."""

    def tojson(x: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson  # Jinja's own escapes for HTML
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return made
