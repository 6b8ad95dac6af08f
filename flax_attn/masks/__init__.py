"""Masks: which query attends to which key, as relations between their coordinates.

`mask(q, k)` is True where a query attends to a key. Masks combine by `&`, `|`, `^` and `~`;
`relation` makes a mask from a function.

Letters: `B` batch, `N` query heads, `T` queries, `S` keys, `nq` and `nk` blocks of queries and
keys. In equations, i is the position of the query and j that of the key.
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
