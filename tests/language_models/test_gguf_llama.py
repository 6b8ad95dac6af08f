"""Sizes and weights of a Llama file are read as they were written; other files are refused."""

import re

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from language_models.gguf_llama import (
    LlamaConfig,
    each_weight,
    open_llama,
    read_config,
    read_weights,
)
from tests.language_models.gguf_files import SIZES, TOKENS, random_tensors, write_llama

TENSORS = random_tensors()


def test_sizes_are_read(tmp_path):
    config = read_config(open_llama(write_llama(tmp_path / "a.gguf")))
    assert config == LlamaConfig(
        num_layers=2,
        features=64,
        mlp_features=96,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=len(TOKENS),
        context_length=64,
        norm_epsilon=float(np.float32(1e-6)),
        tied_embeddings=False,
        rotary_base=5000.0,
    )


def test_factors_of_the_frequencies_are_read(tmp_path):
    factors = np.linspace(1, 4, 8, dtype=np.float32)
    scaled = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    listed = write_llama(tmp_path / "a.gguf", {"rope_freqs.weight": factors, **TENSORS})
    linear = write_llama(tmp_path / "b.gguf", sizes=SIZES | scaled)
    assert read_config(open_llama(listed)).rotary_factors == tuple(factors.tolist())
    assert read_config(open_llama(linear)).rotary_factors == (4.0,) * 8
    reader = open_llama(listed)
    assert len(read_weights(reader, read_config(reader))) == len(TENSORS)


def test_weights_are_dequantised_in_the_layout_of_flax(tmp_path):
    quantized = {"blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"}
    reader = open_llama(write_llama(tmp_path / "a.gguf", quantized=quantized))
    weights = read_weights(reader, read_config(reader))
    assert len(weights) == len(TENSORS)

    def written(name):
        tensor = TENSORS[f"{name}.weight"]
        if f"{name}.weight" in quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            tensor = gguf.dequantize(gguf.quants.quantize(tensor, kind), kind)
        return tensor

    for ours, theirs, shape in (
        ("layers.0.query", "blk.0.attn_q", (64, 4, 16)),
        ("layers.1.key", "blk.1.attn_k", (64, 2, 16)),
        ("layers.1.out", "blk.1.attn_output", (4, 16, 64)),
        ("layers.1.down", "blk.1.ffn_down", (96, 64)),
        ("head", "output", (64, len(TOKENS))),
    ):
        np.testing.assert_array_equal(weights[ours], written(theirs).T.reshape(shape))
    # Query head 2, feature 3 is row 2 · 16 + 3 of the file.
    np.testing.assert_array_equal(
        weights["layers.1.query"][:, 2, 3], TENSORS["blk.1.attn_q.weight"][35]
    )
    np.testing.assert_array_equal(weights["embedding"], written("token_embd"))
    np.testing.assert_array_equal(weights["layers.0.mlp_norm"], written("blk.0.ffn_norm"))


def test_weights_have_the_dtype_that_is_asked_for(tmp_path):
    reader = open_llama(write_llama(tmp_path / "a.gguf"))
    for name, weight in each_weight(reader, read_config(reader), jnp.bfloat16):
        assert weight.dtype == jnp.bfloat16, name
        assert weight.flags.c_contiguous, name


def test_a_tied_embedding_has_no_head(tmp_path):
    tensors = {name: x for name, x in TENSORS.items() if name != "output.weight"}
    reader = open_llama(write_llama(tmp_path / "a.gguf", tensors))
    assert read_config(reader).tied_embeddings
    assert "head" not in read_weights(reader, read_config(reader))


def test_other_files_are_refused(tmp_path):
    missing, text = tmp_path / "missing.gguf", tmp_path / "text.gguf"
    text.write_text("no GGUF file")
    qwen = write_llama(tmp_path / "qwen.gguf", architecture="qwen2")
    cuts = {length: tmp_path / f"cut_{length}.gguf" for length in (0, 200, 100_000)}
    for length, cut in cuts.items():
        cut.write_bytes(qwen.read_bytes()[:length])
    for path, error, message in (
        (missing, FileNotFoundError, "path must be a GGUF file, got .*missing.gguf: no such file"),
        (text, ValueError, "path must be a whole GGUF file, got .*text.gguf: GGUF magic invalid"),
        *((cut, ValueError, "path must be a whole GGUF file, got") for cut in cuts.values()),
        (qwen, ValueError, "path must be a file of the architecture 'llama', got 'qwen2' in"),
    ):
        with pytest.raises(error, match=f"open_llama: {message}"):
            open_llama(path)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"rope.scaling.type": "yarn"},
            "llama.rope.scaling.type must be one of ['linear', 'none']",
        ),
        ({"rope.dimension_count": 8}, "llama.rope.dimension_count must be one of [16], got 8"),
        ({"attention.sliding_window": 32}, "llama.attention.sliding_window must be one of [0]"),
        ({"expert_count": 4}, "llama.expert_count must be one of [0], got 4"),
        (
            {"attention.head_count": [4, 2]},
            "llama.attention.head_count must be the same for all layers, got a list of 2.",
        ),
    ],
)
def test_parts_that_are_not_known_are_refused(tmp_path, sizes, message):
    reader = open_llama(write_llama(tmp_path / "a.gguf", sizes=SIZES | sizes))
    with pytest.raises(NotImplementedError, match=re.escape(f"read_config: {message}")):
        read_config(reader)


def test_tensors_that_are_not_known_are_refused(tmp_path):
    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    reader = open_llama(write_llama(tmp_path / "a.gguf", TENSORS | bias))
    with pytest.raises(NotImplementedError, match=r"those of Llama, got blk.0.attn_q.bias, .* \(1"):
        read_config(reader)


def test_damaged_files_are_refused(tmp_path):
    without_size = {name: size for name, size in SIZES.items() if name != "block_count"}
    reader = open_llama(write_llama(tmp_path / "a.gguf", sizes=without_size))
    with pytest.raises(ValueError, match=r"the file must have llama.block_count, and does not"):
        read_config(reader)

    without_embedding = {name: x for name, x in TENSORS.items() if name != "token_embd.weight"}
    reader = open_llama(write_llama(tmp_path / "d.gguf", without_embedding))
    with pytest.raises(ValueError, match=r"the file must have the tensor token_embd.weight, and"):
        read_config(reader)

    fewer = {name: x for name, x in TENSORS.items() if "blk.1.attn" not in name}
    reader = open_llama(write_llama(tmp_path / "b.gguf", fewer))
    with pytest.raises(ValueError, match=r"all tensors of 2 layers, lacks layers.1.attention_norm"):
        read_weights(reader, read_config(reader))

    wrong = TENSORS | {"blk.0.attn_k.weight": np.zeros((16, 64), np.float32)}
    reader = open_llama(write_llama(tmp_path / "c.gguf", wrong))
    message = "each_weight: blk.0.attn_k.weight must be [64, 2, 16], got [64, 16]."
    with pytest.raises(ValueError, match=re.escape(message)):
        read_weights(reader, read_config(reader))
