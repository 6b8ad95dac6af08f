"""Score modifiers: functions of the scores of attention, applied before the mask.

A modifier is called as `mod(scores, q, k, head_ids)` and returns the new scores. Modifiers compose
by `>>`, from left to right. Scores are scaled, and float32 (float64 for float64 inputs). Parameters
may have any float dtype; they are used in the dtype of the scores, and they have gradients.

Letters: `N` query heads of the whole model, of which `head_ids` are on this device; `t` and `s`
queries and keys of a tile; `R` rows of a table. In equations, i is the position of the query, j
that of the key, and h the number of the head.
"""

from flax_attn.scores._score_mod import ScoreMod, score_mod
from flax_attn.scores.alibi import ALiBi
from flax_attn.scores.bias import Bias
from flax_attn.scores.distance import DistanceBias, Forget
from flax_attn.scores.elementwise import Scale, SoftCap, Temperature
from flax_attn.scores.relative import RelativeBias, T5Bias
from flax_attn.scores.relative_2d import RelativeBias2D

__all__ = [
    "ALiBi",
    "Bias",
    "DistanceBias",
    "Forget",
    "RelativeBias",
    "RelativeBias2D",
    "Scale",
    "ScoreMod",
    "SoftCap",
    "T5Bias",
    "Temperature",
    "score_mod",
]


def __dir__() -> list[str]:
    return __all__
