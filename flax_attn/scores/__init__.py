"""Score modifiers: what is added to a score, or done to it, before masking.

A modifier is called as `mod(scores, q, k, head_ids)`; modifiers compose by `>>`, from left to
right. Scores are float32 (float64 for float64 inputs) and already scaled; parameters of any float
dtype are used in the dtype of the scores, and have gradients.

Letters: `N` query heads of the whole model, of which `head_ids` are here; `t s` the queries and
keys of a tile; `R` rows of a table. `i` is the position of the query and `j` that of the key, `h`
the number of the head.
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
