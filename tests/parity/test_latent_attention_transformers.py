"""Latent attention equals that of Hugging Face's DeepSeek-V3."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx
from torch_reference import torch
from transformers_reference import transformers

from flax_attn import masks, nnx, positions
from tests.tolerances import FORWARD, assert_close

deepseek = transformers.models.deepseek_v3.modeling_deepseek_v3
pytestmark = pytest.mark.parity

B, T, M, N, R, DN, DR, DV = 2, 9, 32, 4, 16, 8, 6, 10
FACTOR, M_ALL = 40.0, 0.8
YARN = {
    "rope_type": "yarn",
    "factor": FACTOR,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": M_ALL,
}
OURS_YARN = {
    "rotary": positions.Rotary(
        DR,
        scaling=positions.YaRN(FACTOR, original_length=16, mscale=1.0, mscale_all_dim=M_ALL),
        layout="interleaved",
    ),
    "scale": (0.1 * M_ALL * math.log(FACTOR) + 1) ** 2 / math.sqrt(DN + DR),
}
CASES = {
    "low-rank queries": (12, False, {"rope_type": "default"}, {}),
    "one query map": (None, False, {"rope_type": "default"}, {}),
    "biases": (12, True, {"rope_type": "default"}, {}),
    "YaRN": (12, False, YARN, OURS_YARN),
}


def reference(query_rank, use_bias, rope):
    """Their module with random weights, and the rotary embedding of its model."""
    config = transformers.DeepseekV3Config(
        hidden_size=M,
        num_attention_heads=N,
        num_key_value_heads=N,
        q_lora_rank=query_rank,
        kv_lora_rank=R,
        qk_nope_head_dim=DN,
        qk_rope_head_dim=DR,
        v_head_dim=DV,
        attention_bias=use_bias,
        max_position_embeddings=16 * 40,
        rope_parameters={"rope_theta": 10_000.0, **rope},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    layer = deepseek.DeepseekV3Attention(config, layer_idx=0).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            spread = torch.randn_like(parameter) / 3
            parameter.copy_(1 + spread if "layernorm" in name else spread)
    return layer, deepseek.DeepseekV3RotaryEmbedding(config)


def run(layer, rotary, x, cache=None, start=0):
    """Their output for tokens that follow `start` others."""
    x = torch.tensor(x)
    length = x.shape[1]
    places = torch.arange(start, start + length)[None]
    sees = torch.ones(length, start + length).tril(start).bool()
    mask = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)[None, None]
    with torch.no_grad():
        return layer(x, rotary(x, places), mask, cache)[0].numpy()


def parameters(layer):
    """Their weights under our names."""
    theirs = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    made = {}

    def add(name, source, *shape):
        weight = theirs[f"{source}.weight"].T
        made[name] = {"kernel": weight.reshape(shape or weight.shape)}
        if f"{source}.bias" in theirs:
            made[name]["bias"] = theirs[f"{source}.bias"]

    if layer.q_proj is None:
        add("query_down", "q_a_proj")
        made["query_norm"] = {"scale": theirs["q_a_layernorm.weight"]}
        add("query", "q_b_proj", -1, N, DN + DR)
    else:
        add("query", "q_proj", -1, N, DN + DR)
    add("kv_down", "kv_a_proj_with_mqa")
    made["kv_norm"] = {"scale": theirs["kv_a_layernorm.weight"]}
    both = theirs["kv_b_proj.weight"].T.reshape(R, N, DN + DV)
    for name, kernel in zip(("key_up", "value_up"), np.split(both, [DN], axis=-1), strict=True):
        made[name] = {"kernel": kernel}
    add("out", "o_proj", N, DV, M)
    return made


def ours(layer, query_rank, use_bias, options):
    module = nnx.LatentAttention(
        M,
        num_heads=N,
        query_rank=query_rank,
        kv_rank=R,
        nope_head_dim=DN,
        rope_head_dim=DR,
        value_head_dim=DV,
        use_bias=use_bias,
        mask=masks.Causal(),
        **options,
        rngs=flax_nnx.Rngs(0),
    )
    state = flax_nnx.state(module, flax_nnx.Param)
    flax_nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, parameters(layer)))
    flax_nnx.update(module, state)
    return module


@pytest.mark.parametrize("case", CASES)
def test_the_module_equals_that_of_deepseek_whole_and_step_by_step(case):
    query_rank, use_bias, rope, options = CASES[case]
    layer, rotary = reference(query_rank, use_bias, rope)
    module = ours(layer, query_rank, use_bias, options)
    x = np.random.default_rng(0).normal(size=(B, T, M)).astype(np.float32)
    expected = run(layer, rotary, x)
    tolerance = 2 * FORWARD["float32"]
    for form in ("naive", "absorbed"):
        assert_close(jax.jit(functools.partial(module, form=form))(x), expected, tolerance)

    step = jax.jit(lambda x, cache: module(x, cache=cache))
    their_cache, cache = transformers.DynamicCache(), module.create_cache(T, batch=B)
    for start, stop in ((0, 6), (6, 7), (7, 8), (8, 9)):
        theirs = run(layer, rotary, x[:, start:stop], their_cache, start)
        actual, cache = step(x[:, start:stop], cache)
        assert_close(actual, theirs, tolerance)
        assert_close(actual, expected[:, start:stop], tolerance)


def test_the_comparison_depends_on_every_weight():
    layer, rotary = reference(12, True, YARN)
    x = np.random.default_rng(0).normal(size=(B, T, M)).astype(np.float32)
    before = run(layer, rotary, x)
    for _, parameter in layer.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.5)
            assert np.abs(run(layer, rotary, x) - before).max() > 1e-3
            parameter.copy_(kept)
