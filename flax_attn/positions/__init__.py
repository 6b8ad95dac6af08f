"""Positional encodings, as pure functions of any array of positions.

Letters: `T` tokens, `M` model features, `P` rows of a table.
"""

from flax_attn.positions._learned import learned
from flax_attn.positions._sinusoidal import sinusoidal

__all__ = [
    "learned",
    "sinusoidal",
]


def __dir__() -> list[str]:
    return __all__
