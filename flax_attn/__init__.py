"""Attention mechanisms for JAX: pure functions, with thin Flax modules in `linen` and `nnx`."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from flax_attn import (
    attention,
    caches,
    coords,
    maps,
    masks,
    normalizers,
    positions,
    scores,
    sharded,
    vision,
    visualize,
)
from flax_attn.attention import (
    Dropout,
    additive_attention,
    attention_weights,
    dot_product_attention,
    explain,
    merge,
    multi_head_attention,
    scaled_dot_product_attention,
)
from flax_attn.coords import Coords
from flax_attn.masks import Plan, make_plan
from flax_attn.normalizers import Sigmoid, Softmax

if TYPE_CHECKING:
    from flax_attn import linen, nnx

__version__ = "0.1.0"

__all__ = [
    "Coords",
    "Dropout",
    "Plan",
    "Sigmoid",
    "Softmax",
    "additive_attention",
    "attention",
    "attention_weights",
    "caches",
    "coords",
    "dot_product_attention",
    "explain",
    "linen",
    "make_plan",
    "maps",
    "masks",
    "merge",
    "multi_head_attention",
    "nnx",
    "normalizers",
    "positions",
    "scaled_dot_product_attention",
    "scores",
    "sharded",
    "vision",
    "visualize",
]


def __getattr__(name: str) -> ModuleType:
    """Import `linen` and `nnx` at their first use, as they need Flax and the rest does not."""
    if name in ("linen", "nnx"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
