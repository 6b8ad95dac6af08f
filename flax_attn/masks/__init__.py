"""Masks: who may see whom, as relations between the coordinates of queries and keys.

`mask(q, k)` is True where a query attends. Masks combine by `& | ^ ~`; `relation` makes one of a
function. Shapes: B batch, N query heads, T queries, S keys, nq and nk blocks of them. In equations
i is the query's position and j the key's.
"""

from flax_attn.masks._mask import Mask, relation
from flax_attn.masks.dense import Dense, Selected
from flax_attn.masks.neighborhood import Neighborhood
from flax_attn.masks.patterns import Chunked, Dilated, Strided
from flax_attn.masks.plan import Plan, make_plan
from flax_attn.masks.positional import Causal, Empty, Full, Prefix, Window
from flax_attn.masks.tokens import GlobalTokens, Interval, Overlay, Padding, SameSegment, Tree

__all__ = [
    "Causal",
    "Chunked",
    "Dense",
    "Dilated",
    "Empty",
    "Full",
    "GlobalTokens",
    "Interval",
    "Mask",
    "Neighborhood",
    "Overlay",
    "Padding",
    "Plan",
    "Prefix",
    "SameSegment",
    "Selected",
    "Strided",
    "Tree",
    "Window",
    "make_plan",
    "relation",
]


def __dir__() -> list[str]:
    return __all__
