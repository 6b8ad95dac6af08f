"""Sizes and weights of a language model of the Llama architecture, from a GGUF file.

    reader = open_llama("model.gguf")
    config = read_config(reader)
    weights = read_weights(reader, config)    # {"layers.0.query": [M, N, D], ...}

GGUF is the file format of llama.cpp: named numbers and texts, and tensors that are mostly quantised
in blocks of 32 weights. The package `gguf` reads them.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a model of the Llama architecture.

    Attributes:
      num_layers: Number of blocks.
      features: M, the width of a token.
      mlp_features: F, the width inside the MLP.
      num_heads: N, the number of query heads.
      num_kv_heads: K, the number of key and value heads.
      head_dim: D.
      vocab_size: V.
      context_length: Number of tokens that the model was trained for.
      norm_epsilon: ε of RMSNorm.
      tied_embeddings: If True, the embedding also makes the logits, and there is no `head`.
      rotary_base: θ; pair i of a head turns by position · θ^(−2i/D) / rotary_factors[i].
      rotary_factors: Divisors of the D / 2 frequencies; None for 1.
      rotary_layout: GGUF permutes Llama's queries and keys so that the features 2i and 2i + 1 of a
        head are a pair.
    """

    num_layers: int
    features: int
    mlp_features: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    tied_embeddings: bool
    rotary_base: float
    rotary_factors: tuple[float, ...] | None = None
    rotary_layout: str = "interleaved"


OUTER = {"token_embd": "embedding", "output_norm": "norm", "output": "head"}
INNER = {  # of a block
    "attn_norm": "attention_norm",
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_output": "out",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
FACTORS = "rope_freqs.weight"


def open_llama(path: str | Path) -> gguf.GGUFReader:
    """Open a GGUF file of the Llama architecture. Tensors are read from disk when they are used.

    Raises:
      ValueError: If the file is no whole GGUF file, or of another architecture.
      FileNotFoundError: If there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"open_llama: path must be a GGUF file, got {path}: no such file.")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:  # IndexError where the file ends too early
        raise ValueError(
            f"open_llama: path must be a whole GGUF file, got {path}: {error}. If it was cut off, "
            f"download it again."
        ) from error
    architecture = field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(
            f"open_llama: path must be a file of the architecture 'llama', got {architecture!r} in "
            f"{path}. Other architectures have other layers. Choose a Llama or SmolLM2 file."
        )
    return reader


def field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
    """A number, text or list of the file by its name."""
    found = reader.get_field(name)
    return default if found is None else found.contents()


def read_config(reader: gguf.GGUFReader) -> LlamaConfig:
    """The sizes of the model.

    Raises:
      ValueError: If a size or the embedding is missing.
      NotImplementedError: If the model has parts that `LlamaConfig` cannot describe, such as
        experts, biases, a sliding window or layers of different sizes.
    """

    def number(name: str, default: Any = None) -> Any:
        value = field(reader, f"llama.{name}", default)
        if value is None:
            raise ValueError(f"read_config: the file must have llama.{name}, and does not.")
        if isinstance(value, list):
            raise NotImplementedError(
                f"read_config: llama.{name} must be the same for all layers, got a list of "
                f"{len(value)}. The model has layers of different sizes, which this reader does "
                f"not know."
            )
        return value

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    num_heads, features = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", features // num_heads)
    scaling = number("rope.scaling.type", "none")
    factors = None
    if FACTORS in tensors:
        factors = tuple(float(x) for x in tensors[FACTORS].data)
    elif scaling == "linear":
        factors = (float(number("rope.scaling.factor")),) * (head_dim // 2)
    for name, found, supported in (
        ("rope.scaling.type", scaling, {"none", "linear"}),
        ("rope.dimension_count", number("rope.dimension_count", head_dim), {head_dim}),
        ("attention.value_length", number("attention.value_length", head_dim), {head_dim}),
        ("attention.sliding_window", number("attention.sliding_window", 0), {0}),
        ("expert_count", number("expert_count", 0), {0}),
    ):
        if found not in supported:
            raise NotImplementedError(
                f"read_config: llama.{name} must be one of {sorted(supported)}, got {found!r}. "
                f"The model has a part that this reader does not know."
            )
    unknown = sorted(name for name in tensors if name != FACTORS and our_name(name) is None)
    if unknown:
        raise NotImplementedError(
            f"read_config: the tensors must be those of Llama, got {', '.join(unknown[:4])}, ... "
            f"({len(unknown)} unknown). The model has parts that this reader does not know."
        )
    if "token_embd.weight" not in tensors:
        raise ValueError(
            "read_config: the file must have the tensor token_embd.weight, and does not. Download "
            "it again."
        )
    return LlamaConfig(
        num_layers=number("block_count"),
        features=features,
        mlp_features=number("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        context_length=number("context_length"),
        norm_epsilon=number("attention.layer_norm_rms_epsilon"),
        tied_embeddings="output.weight" not in tensors,
        rotary_base=number("rope.freq_base", 10_000.0),
        rotary_factors=factors,
    )


def our_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` -> `layers.3.query`; None for an unknown tensor."""
    if inner := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        layer, part = inner.groups()
        return f"layers.{layer}.{INNER[part]}" if part in INNER else None
    return OUTER.get(name.removesuffix(".weight"))


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights by the last part of their names, as Flax's layers have them."""
    c = config
    query, keys = (c.features, c.num_heads, c.head_dim), (c.features, c.num_kv_heads, c.head_dim)
    up = (c.features, c.mlp_features)
    return {
        "embedding": (c.vocab_size, c.features),
        "head": (c.features, c.vocab_size),
        **dict.fromkeys(("norm", "attention_norm", "mlp_norm"), (c.features,)),
        "query": query,
        **dict.fromkeys(("key", "value"), keys),
        "out": (c.num_heads, c.head_dim, c.features),
        **dict.fromkeys(("gate", "up"), up),
        "down": up[::-1],
    }


def each_weight(
    reader: gguf.GGUFReader, config: LlamaConfig, dtype: DTypeLike = np.float32
) -> Iterator[tuple[str, np.ndarray]]:
    """Dequantise one tensor after the other, so that only one is in memory beside what you keep.

    Args:
      reader: The file.
      config: Its sizes.
      dtype: Of the arrays. They are dequantised in float32.

    Yields:
      The name and the array, in the layout of Flax: kernels are `[in, out]`.

    Raises:
      ValueError: If a tensor has another shape than `config` says.
    """
    expected = shapes(config)
    for tensor in reader.tensors:
        name = our_name(tensor.name)
        if name is None:
            continue
        kind = name.rpartition(".")[2]
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if weight.ndim == 2 and kind != "embedding":
            weight = weight.T  # the file has [out, in]
        if weight.size != np.prod(expected[kind]):
            raise ValueError(
                f"each_weight: {tensor.name} must be {list(expected[kind])}, got "
                f"{list(weight.shape)}. The file is damaged, or its sizes are wrong."
            )
        yield name, np.ascontiguousarray(weight, dtype).reshape(expected[kind])


def read_weights(
    reader: gguf.GGUFReader, config: LlamaConfig, dtype: DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """All weights by name.

    Args:
      reader: The file.
      config: Its sizes.
      dtype: Of the arrays.

    Returns:
      `embedding` `[V, M]`, `norm` `[M]`, `head` `[M, V]` if it is not tied to the embedding, and
      for each layer i `layers.i.attention_norm` `[M]`, `layers.i.query` `[M, N, D]`, `layers.i.key`
      and `layers.i.value` `[M, K, D]`, `layers.i.out` `[N, D, M]`, `layers.i.mlp_norm` `[M]`,
      `layers.i.gate` and `layers.i.up` `[M, F]`, `layers.i.down` `[F, M]`.

    Raises:
      ValueError: If weights are missing, or have another shape than `config` says.
    """
    weights = dict(each_weight(reader, config, dtype))
    outer = {"embedding", "norm"} | (set() if config.tied_embeddings else {"head"})
    wanted = outer | {f"layers.{i}.{x}" for i in range(config.num_layers) for x in INNER.values()}
    if missing := sorted(wanted - weights.keys()):
        raise ValueError(
            f"read_weights: the file must have all tensors of {config.num_layers} layers, lacks "
            f"{', '.join(missing[:4])} ({len(missing)} in all). Download it again."
        )
    return weights
