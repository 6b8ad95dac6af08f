"""Rotary positions equal those of Hugging Face transformers, for published configurations."""

import dataclasses

import jax
import numpy as np
import pytest
from torch_reference import torch
from transformers_reference import transformers

from flax_attn import positions
from flax_attn.positions import Rotary
from tests.tolerances import FORWARD, assert_close

glm = transformers.models.glm.modeling_glm
gptj = transformers.models.gptj.modeling_gptj
llama = transformers.models.llama.modeling_llama
qwen2_vl = transformers.models.qwen2_vl.modeling_qwen2_vl
qwen3_vl = transformers.models.qwen3_vl.modeling_qwen3_vl
pytestmark = pytest.mark.parity

# Of microsoft/Phi-3-mini-128k-instruct.
SHORT = [
    *(1.05, 1.05, 1.05, 1.1, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.5, *([2.0] * 21), 2.05, 2.05, 2.05),
    *(2.1, 2.1, 2.1, 2.15, 2.15, 2.35, 2.55, 2.6, 2.6, 2.75, 2.85, 2.85, 2.95),
]
LONG = [
    *(1.03, 1.05, 1.05, 1.08, 1.23, 1.23, 1.3, 1.45, 1.6, 1.65, 1.9, 2.86, 3.69, 5.42, 5.49, 5.49),
    *(9.09, 11.58, 15.66, 15.77, 15.79, 18.36, 21.99, 23.08, 30.01, 32.35, 32.59, 35.56, 39.95),
    *(53.84, 56.2, 57.95, 59.29, 59.77, 59.92, 61.19, 61.96, 62.5, 63.37, 63.48, 63.48, 63.66),
    *(63.85, 64.08, 64.76, 64.8, 64.81, 64.81),
]


@dataclasses.dataclass(frozen=True)
class Model:
    """A published configuration, and our settings for it."""

    rotary: Rotary
    rope: dict
    longest: int  # max_position_embeddings
    lengths: tuple[int | None, ...] = (None,)

    def config(self):
        rotated = self.rotary.rotated or self.rotary.head_dim
        return transformers.LlamaConfig(
            head_dim=self.rotary.head_dim,
            max_position_embeddings=self.longest,
            rope_parameters={
                "rope_theta": self.rotary.base,
                "partial_rotary_factor": rotated / self.rotary.head_dim,
                **self.rope,
            },
        )


MODELS = {
    "meta-llama/Llama-3.1-8B": Model(
        Rotary(128, 500_000.0, positions.Llama3(8, 8192)),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        131_072,
    ),
    "meta-llama/Llama-3.2-1B": Model(
        Rotary(64, 500_000.0, positions.Llama3(32, 8192)),
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        131_072,
    ),
    "deepseek-ai/deepseek-coder-6.7b-instruct": Model(
        Rotary(128, 100_000.0, positions.Linear(4)),
        {"rope_type": "linear", "factor": 4.0},
        16_384,
    ),
    "Qwen/Qwen2.5-7B-Instruct": Model(
        Rotary(128, 1_000_000.0, positions.YaRN(4, 32_768)),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
        131_072,
    ),
    "deepseek-ai/DeepSeek-V3": Model(
        Rotary(64, 10_000.0, positions.YaRN(40, 4096, mscale=1.0, mscale_all_dim=1.0)),
        {
            "rope_type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
        163_840,
    ),
    "deepseek-ai/DeepSeek-V2-Lite, with another mscale": Model(
        Rotary(64, 10_000.0, positions.YaRN(40, 4096, mscale=0.707, mscale_all_dim=0.5)),
        {
            "rope_type": "yarn",
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.5,
            "original_max_position_embeddings": 4096,
        },
        163_840,
    ),
    "openai/gpt-oss-20b": Model(
        Rotary(64, 150_000.0, positions.YaRN(32, 4096, truncate=False)),
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        131_072,
    ),
    "microsoft/Phi-3-mini-128k-instruct": Model(
        Rotary(96, 10_000.0, positions.LongRoPE(SHORT, LONG, 4096, factor=32)),
        {
            "rope_type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "original_max_position_embeddings": 4096,
        },
        131_072,
        (None, 4096, 4097, 100_000),
    ),
    "dynamic NTK of Llama 2": Model(
        Rotary(128, 10_000.0, positions.DynamicNTK(2, 4096)),
        {"rope_type": "dynamic", "factor": 2.0},
        4096,
        (None, 100, 4096, 4200, 20_000),
    ),
    "partial rotation": Model(
        Rotary(128, 10_000.0, positions.YaRN(4, 8192), rotated=64),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
        32_768,
    ),
}
SCALED = [(name, length) for name, model in MODELS.items() for length in model.lengths]


@pytest.mark.parametrize(("name", "length"), SCALED)
def test_frequencies_of_published_models(name, length):
    model = MODELS[name]
    reference = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[model.rope["rope_type"]]
    values, factor = reference(model.config(), "cpu", seq_len=length)
    for given in (length, None if length is None else jax.numpy.int32(length)):
        ours = model.rotary.frequencies(given)
        np.testing.assert_allclose(ours.values, values.numpy(), rtol=1e-6, atol=0)
        assert ours.attention_factor == pytest.approx(factor, rel=1e-6)
    unscaled = Rotary(model.rotary.head_dim, model.rotary.base, rotated=model.rotary.rotated)
    differs = not np.allclose(values.numpy(), unscaled.frequencies().values, rtol=1e-3)
    assert differs == (model.rope["rope_type"] != "dynamic" or (length or 0) > 4096)


def heads(size, seed=0):
    """`[B, T, N, D]`, and as PyTorch has it, `[B, N, T, D]`."""
    x = np.random.default_rng(seed).normal(size=(2, 6, 3, size)).astype(np.float32)
    return x, torch.from_numpy(x).transpose(1, 2)


def check(ours, reference, x, tolerance=FORWARD["float32"]):
    """Equal, and far from the array before rotation."""
    reference = reference.transpose(1, 2).numpy()
    assert_close(ours, reference, tolerance)
    assert np.abs(reference - x).max() > 0.5


PLACES = np.array([[0, 1, 2, 3, 4, 5], [7, 8, 9, 0, 1, 2]])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "partial rotation"])
def test_rotation_as_in_llama(name):
    model = MODELS[name]
    module = llama.LlamaRotaryEmbedding(model.config())
    x, x_torch = heads(model.rotary.head_dim)
    for shift in {0, (model.lengths[-1] or 1) - 1}:  # beyond the original length
        places = PLACES + shift
        cos, sin = module(x_torch, torch.from_numpy(places))
        reference, _ = llama.apply_rotary_pos_emb(x_torch, x_torch, cos, sin)
        # An angle of `shift` radians has an error of shift · 2⁻²⁴ in either library.
        check(model.rotary(x, places), reference, x, FORWARD["float32"] + shift * 2.0**-22)


@pytest.mark.parametrize("rotated", [64, 16])
def test_rotation_as_in_gpt_j(rotated):
    x, _ = heads(64)
    table = gptj.create_sinusoidal_positions(64, rotated)[torch.from_numpy(PLACES)]
    sin, cos = torch.split(table, rotated // 2, dim=-1)
    turned = gptj.apply_rotary_pos_emb(torch.from_numpy(x[..., :rotated]), sin, cos)
    reference = np.concatenate([turned.numpy(), x[..., rotated:]], axis=-1)
    ours = Rotary(64, layout="interleaved", rotated=rotated)(x, PLACES)
    assert_close(ours, reference, FORWARD["float32"])


def test_rotation_as_in_glm():
    """The first half of each head, interleaved."""
    config = transformers.GlmConfig(
        head_dim=128, rope_parameters={"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    )
    x, x_torch = heads(128)
    cos, sin = glm.GlmRotaryEmbedding(config)(x_torch, torch.from_numpy(PLACES))
    reference, _ = glm.apply_rotary_pos_emb(x_torch, x_torch, cos, sin)
    check(Rotary(128, layout="interleaved", rotated=64)(x, PLACES), reference, x)


def test_rotation_as_in_qwen2_vl():
    """Time, rows and columns."""
    config = qwen2_vl.Qwen2VLTextConfig(
        hidden_size=3 * 128,
        num_attention_heads=3,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": [16, 24, 24],
        },
    )
    module = qwen2_vl.Qwen2VLRotaryEmbedding(config)
    x, x_torch = heads(128)
    places = np.random.default_rng(1).integers(0, 40, (2, 6, 3))
    cos, sin = module(x_torch, torch.from_numpy(np.moveaxis(places, -1, 0)))
    reference, _ = qwen2_vl.apply_rotary_pos_emb(x_torch, x_torch, cos, sin)
    ours = Rotary(128, 1_000_000.0, sections=(16, 24, 24))(x, places)
    check(ours, reference, x, FORWARD["float32"] * 10)  # angles of up to 40 radians


def test_rotation_as_in_qwen3_vl():
    """Time, rows and columns take turns, so that each frequency is a section."""
    config = qwen3_vl.Qwen3VLTextConfig(
        hidden_size=3 * 128,
        num_attention_heads=3,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [24, 20, 20],
        },
    )
    module = qwen3_vl.Qwen3VLTextRotaryEmbedding(config)
    x, x_torch = heads(128)
    places = np.random.default_rng(1).integers(0, 40, (2, 6, 3))
    cos, sin = module(x_torch, torch.from_numpy(np.moveaxis(places, -1, 0)))
    reference, _ = qwen3_vl.apply_rotary_pos_emb(x_torch, x_torch, cos, sin)
    axes = np.array([0, 1, 2] * 20 + [0] * 4)
    ours = Rotary(128, 5_000_000.0, sections=(1,) * 64)(x, places[..., axes])
    check(ours, reference, x, FORWARD["float32"] * 10)  # angles of up to 40 radians


def test_rotation_of_images_as_in_qwen2_vl():
    """Rows and columns with the same frequencies."""
    x, _ = heads(80)
    places = np.stack(np.divmod(np.arange(6), 3), axis=-1)
    tables = [10_000.0 ** -(np.arange(0, 40, 2) / 40)] * 2
    angles = np.concatenate([places[:, [a]] * tables[a] for a in range(2)], axis=-1)
    angles = torch.from_numpy(np.concatenate([angles, angles], axis=-1)).float()
    reference = [
        qwen2_vl.apply_rotary_pos_emb_vision(row, row, angles.cos(), angles.sin())[0]
        for row in torch.from_numpy(x)
    ]
    ours = Rotary(80, sections=(20, 20), axial=True)(x, places)
    assert_close(ours, np.stack([row.numpy() for row in reference]), FORWARD["float32"])
