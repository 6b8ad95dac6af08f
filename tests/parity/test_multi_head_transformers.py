"""The attention of published language models is `nnx.MultiHeadAttention` with their settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx as flax_nnx
from torch_reference import torch
from transformers_reference import transformers

from flax_attn import caches, masks, nnx, positions, scores
from flax_attn.positions import Rotary
from tests.tolerances import FORWARD, assert_close

models = transformers.models
pytestmark = pytest.mark.parity

B, T, M, N, K, D, WINDOW = 2, 12, 24, 4, 2, 16, 5
SIZES = {
    "hidden_size": M,
    "num_attention_heads": N,
    "num_key_value_heads": K,
    "head_dim": D,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-6,
    "attn_implementation": "eager",
}
TOLERANCE = 4 * FORWARD["float32"]


@dataclasses.dataclass(frozen=True)
class Model:
    """Attention of transformers, and ours.

    Attributes:
      module: Their file.
      prefix: Of the names of their classes.
      config: Their configuration.
      options: Of `nnx.MultiHeadAttention`.
      window: How many of the last tokens a token sees.
      layer_type: Which rotary positions, if there are several.
      norm_starts_at: What their norm adds to its weight.
    """

    module: Any
    prefix: str
    config: Callable[[], Any]
    options: dict[str, Any]
    window: int = T
    layer_type: str | None = None
    norm_starts_at: float = 0.0


def rope(base, **settings):
    return {"rope_type": "default", "rope_theta": base, **settings}


YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
MODELS = {
    "Llama": Model(
        models.llama.modeling_llama,
        "Llama",
        lambda: transformers.LlamaConfig(**SIZES, rope_parameters=rope(500_000.0)),
        {"rotary": Rotary(D, 500_000.0), "use_bias": False},
    ),
    "Qwen3": Model(
        models.qwen3.modeling_qwen3,
        "Qwen3",
        lambda: transformers.Qwen3Config(**SIZES, rope_parameters=rope(1e6)),
        {"rotary": Rotary(D, 1e6), "use_bias": False, "normalize_qk": "rms"},
    ),
    "GPT-OSS": Model(
        models.gpt_oss.modeling_gpt_oss,
        "GptOss",
        lambda: transformers.GptOssConfig(
            **SIZES,
            sliding_window=WINDOW,
            layer_types=["sliding_attention"],
            rope_parameters=rope(150_000.0, **YARN),
        ),
        {
            "rotary": Rotary(D, 150_000.0, positions.YaRN(32.0, 4096, truncate=False)),
            "mask": masks.Window(WINDOW - 1),
            "sink": True,
        },
        window=WINDOW,
    ),
    "Gemma 2": Model(
        models.gemma2.modeling_gemma2,
        "Gemma2",
        lambda: transformers.Gemma2Config(
            **SIZES,
            sliding_window=WINDOW,
            layer_types=["sliding_attention"],
            query_pre_attn_scalar=144,
            attn_logit_softcapping=0.5,
            rope_parameters=rope(10_000.0),
        ),
        {
            "rotary": Rotary(D),
            "mask": masks.Window(WINDOW - 1),
            "score_mod": scores.SoftCap(0.5),
            "scale": 1 / 12,
            "use_bias": False,
        },
        window=WINDOW,
    ),
    "Gemma 3": Model(
        models.gemma3.modeling_gemma3,
        "Gemma3",
        lambda: transformers.Gemma3TextConfig(
            **SIZES,
            sliding_window=WINDOW,
            layer_types=["sliding_attention"],
            query_pre_attn_scalar=168,
            rope_parameters={
                "sliding_attention": rope(10_000.0),
                "full_attention": rope(1e6, rope_type="linear", factor=8.0),
            },
        ),
        {
            "rotary": Rotary(D),
            "mask": masks.Window(WINDOW - 1),
            "scale": 168**-0.5,
            "use_bias": False,
            "normalize_qk": "rms",
        },
        window=WINDOW,
        layer_type="sliding_attention",
        norm_starts_at=1.0,
    ),
    "Qwen3-Next": Model(
        models.qwen3_next.modeling_qwen3_next,
        "Qwen3Next",
        lambda: transformers.Qwen3NextConfig(
            **SIZES, rope_parameters=rope(1e7, partial_rotary_factor=0.25)
        ),
        {
            "rotary": Rotary(D, 1e7, rotated=D // 4),
            "use_bias": False,
            "normalize_qk": "rms",
            "output_gate": True,
        },
        norm_starts_at=1.0,
    ),
}


def their_attention(model):
    """Their layer with random weights, and a function of its input."""
    config = model.config()
    layer = getattr(model.module, f"{model.prefix}Attention")(config, 0).eval()
    embedding = getattr(model.module, f"{model.prefix}RotaryEmbedding")(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    t = torch.arange(T)
    seen = (t[:, None] >= t) & (t[:, None] - t < model.window)
    mask = torch.where(seen, 0.0, -torch.inf)[None, None]

    def attend(x):
        where = {} if model.layer_type is None else {"layer_type": model.layer_type}
        angles = embedding(x, t[None], **where)
        return layer(x, position_embeddings=angles, attention_mask=mask)[0]

    return layer, attend


def to_ours(model, layer):
    """Their weights in the form of our parameters."""
    state = {name: x.detach().numpy() for name, x in layer.named_parameters()}
    found = {}
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        heads = K if ours in ("key", "value") else N
        found[ours] = {"kernel": state[f"{theirs}_proj.weight"].T.reshape(M, heads, -1)}
        if f"{theirs}_proj.bias" in state:
            found[ours]["bias"] = state[f"{theirs}_proj.bias"].reshape(heads, -1)
    if "output_gate" in model.options:  # the halves of each head of one projection
        query, gate = np.split(found["query"]["kernel"], 2, axis=-1)
        found["query"], found["gate"] = {"kernel": query}, {"kernel": gate}
    found["out"] = {"kernel": state["o_proj.weight"].T.reshape(N, D, M)}
    if "o_proj.bias" in state:
        found["out"]["bias"] = state["o_proj.bias"]
    if "sinks" in state:
        found["sink"] = state["sinks"]
    for ours, theirs in (("query_ln", "q_norm"), ("key_ln", "k_norm")):
        if f"{theirs}.weight" in state:
            found[ours] = {"scale": state[f"{theirs}.weight"] + model.norm_starts_at}
    return found


def our_attention(model, parameters):
    module = nnx.MultiHeadAttention(
        N, M, num_kv_heads=K, head_dim=D, **model.options, rngs=flax_nnx.Rngs(0)
    )
    state = flax_nnx.state(module, flax_nnx.Param)
    jax.tree.map(lambda a, b: None, flax_nnx.to_pure_dict(state), parameters)  # the same names
    flax_nnx.replace_by_pure_dict(state, parameters)
    flax_nnx.update(module, state)
    return module


@pytest.mark.parametrize("name", MODELS)
def test_attention_of_a_model_whole_and_step_by_step(name):
    model = MODELS[name]
    layer, attend = their_attention(model)
    x = np.random.default_rng(1).normal(size=(B, T, M)).astype(np.float32)
    output = attend(torch.tensor(x))
    torch.sin(output).sum().backward()
    for weight, parameter in layer.named_parameters():  # the output depends on each
        assert parameter.grad is not None, weight
        assert parameter.grad.abs().max() > 1e-4, weight
    expected = output.detach().numpy()

    module = our_attention(model, to_ours(model, layer))
    whole = jax.jit(lambda x: module(x, is_causal=True))(x)
    assert_close(whole, expected, TOLERANCE)

    @jax.jit
    def step(cache, x):
        return module(x, cache=cache, is_causal=True)

    cache = caches.KVCache.create(T, K, D, batch=B)
    rows = []
    for start, stop in ((0, 5), *((t, t + 1) for t in range(5, T))):
        row, cache = step(cache, x[:, start:stop])
        rows.append(row)
    assert_close(np.concatenate(rows, axis=1), expected, TOLERANCE)
