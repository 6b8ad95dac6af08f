"""timm's attention layers: our modules with the arguments that make them equal to timm's.

Each is a factory, called as `attention(features, rngs=rngs)` with the number of channels. The
modules of `flax_attn.nnx` can be called in the same way, also through `functools.partial`.
"""

import functools
from collections.abc import Callable
from typing import Literal

from flax import nnx

import flax_attn.nnx
from vision_models.layers import BatchNorm, LayerNorm, divisible

Attention = Callable[..., nnx.Module]


def squeeze_excite(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """`SEModule`: with biases; R = C / 16, rounded to a multiple of 8."""
    return flax_attn.nnx.SqueezeExcite(
        features, hidden_features=divisible(features / 16), use_bias=True, rngs=rngs
    )


def coordinate_attention(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """`CoordAttn`: without biases; R = C / 24, rounded to a multiple of 8."""
    return flax_attn.nnx.CoordinateAttention(
        features, hidden_features=divisible(features / 24), use_bias=False, rngs=rngs
    )


def global_context(
    features: int, *, combine: Literal["add", "multiply"], rngs: nnx.Rngs
) -> nnx.Module:
    """`GlobalContext`: R = C / 8, with timm's ε."""
    return flax_attn.nnx.GlobalContext(
        features,
        reduction=8,
        combine=combine,
        norm=functools.partial(LayerNorm, epsilon=1e-6),
        rngs=rngs,
    )


def non_local(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """`NonLocalAttn`: R = C / 8, rounded to a multiple of 8; scores are divided by √C, not √R."""
    return flax_attn.nnx.NonLocal(
        features,
        hidden_features=divisible(features / 8, least=0.9),
        scale=features**-0.5,
        rngs=rngs,
    )


# As in the released code, the spatial map is normalised. The MLP has no bias.
cbam = functools.partial(flax_attn.nnx.CBAM, reduction=16, kernel_size=7, norm=BatchNorm)

# By the value of timm's argument `attn_layer`.
ATTENTION: dict[str, Attention] = {
    "se": squeeze_excite,
    "ese": flax_attn.nnx.EffectiveSqueezeExcite,
    "eca": flax_attn.nnx.ECA,
    "gc": functools.partial(global_context, combine="multiply"),
    "gca": functools.partial(global_context, combine="add"),
    "cbam": cbam,
    "coord": coordinate_attention,
    "nl": non_local,
}

TIMM_NAMES = {
    # SEModule
    "se.fc1": "attention.reduce",
    "se.fc2": "attention.expand",
    # EffectiveSEModule
    "se.fc": "attention.project",
    # EcaModule
    "se.conv": "attention.conv",
    # GlobalContext
    "se.conv_attn": "attention.score",
    # CbamModule
    "se.channel.fc1": "attention.channel.reduce",
    "se.channel.fc2": "attention.channel.expand",
    "se.spatial.conv.conv": "attention.spatial.conv",
    "se.spatial.conv.bn": "attention.spatial.norm",
    # CoordAttn
    "se.conv1": "attention.reduce",
    "se.bn1": "attention.norm",
    "se.conv_h": "attention.expand_height",
    "se.conv_w": "attention.expand_width",
    # NonLocalAttn
    "se.t": "attention.query",
    "se.p": "attention.key",
    "se.g": "attention.value",
    "se.z": "attention.out",
    "se.norm": "attention.norm",
}


def timm_attention_names(model: nnx.Module) -> dict[str, str]:
    """`TIMM_NAMES`, and the names that tell how timm combines a global context."""
    names = dict(TIMM_NAMES)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, flax_attn.nnx.GlobalContext):
            mlp = "se.mlp_add" if module.combine == "add" else "se.mlp_scale"
            names[f"{mlp}.fc1"] = "attention.reduce"
            names[f"{mlp}.norm"] = "attention.norm"
            names[f"{mlp}.fc2"] = "attention.expand"
    return names
