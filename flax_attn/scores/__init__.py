"""Score modifiers: what is added to a score, or done to it, before masking.

A modifier is called as `mod(scores, q, k, head_ids)`; modifiers compose by `>>`, from left to
right. Scores are float32 (float64 for float64 inputs) and already scaled; parameters of any float
dtype are used in the dtype of the scores, and have gradients.

Letters: `N` query heads of the whole model, of which `head_ids` are here; `t s` the queries and
keys of a tile; `R` rows of a table. `i` is the position of the query and `j` that of the key, `h`
the number of the head.
"""

from flax_attn.scores._score_mod import ScoreMod as ScoreMod
from flax_attn.scores._score_mod import score_mod as score_mod
from flax_attn.scores.alibi import ALiBi as ALiBi
from flax_attn.scores.bias import Bias as Bias
from flax_attn.scores.distance import DistanceBias as DistanceBias
from flax_attn.scores.distance import Forget as Forget
from flax_attn.scores.elementwise import Scale as Scale
from flax_attn.scores.elementwise import SoftCap as SoftCap
from flax_attn.scores.elementwise import Temperature as Temperature
from flax_attn.scores.relative import RelativeBias as RelativeBias
from flax_attn.scores.relative import T5Bias as T5Bias
from flax_attn.scores.relative_2d import RelativeBias2D as RelativeBias2D
