"""Positional encodings: pure functions of any array of positions.

Letters: `T` tokens, `M` model features, `P` rows of a table.
"""

from flax_attn.positions.learned import learned as learned
from flax_attn.positions.sinusoidal import sinusoidal as sinusoidal
