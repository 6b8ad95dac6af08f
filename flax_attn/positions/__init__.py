"""Positional encodings, as pure functions of any array of positions.

Letters: `T` tokens, `M` model features, `P` rows of a table. Rotary positions: `N` heads, `D` size
of a head, `R` rotated features of a head, `F = R/2` frequencies θ, `A` axes of positions.
"""

from flax_attn.positions._frequencies import Frequencies, frequencies
from flax_attn.positions._interpolation import NTK, DynamicNTK, Linear
from flax_attn.positions._learned import learned
from flax_attn.positions._llama3 import Llama3
from flax_attn.positions._longrope import LongRoPE
from flax_attn.positions._permutation import to_half, to_interleaved
from flax_attn.positions._rotary import rotary
from flax_attn.positions._rotary_setting import Rotary
from flax_attn.positions._sinusoidal import sinusoidal
from flax_attn.positions._yarn import YaRN

__all__ = [
    "NTK",
    "DynamicNTK",
    "Frequencies",
    "Linear",
    "Llama3",
    "LongRoPE",
    "Rotary",
    "YaRN",
    "frequencies",
    "learned",
    "rotary",
    "sinusoidal",
    "to_half",
    "to_interleaved",
]


def __dir__() -> list[str]:
    return __all__
