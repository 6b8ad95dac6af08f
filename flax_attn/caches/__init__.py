"""Caches of keys and values, for generating token by token.

A cache stores the coordinates of tokens beside their keys and values. So masks and score modifiers
mean the same with a cache as without. `cache.attend(query, key, value, mask=...)` appends tokens
and attends to all of their sequence; `cache.append` and the attributes `keys`, `values` and
`coords` do the same in two steps, for any function of attention.

Letters: `B` batch (any number of leading axes), `T` new tokens, `S` slots of a sequence, `N` query
heads, `K` key/value heads, `D` head size, `Dv` head size of the values.
"""

from flax_attn.caches._cache import Cache
from flax_attn.caches._contiguous import KVCache
from flax_attn.caches._paged import PagedCache
from flax_attn.caches._quantized import Quantized, QuantizedCache
from flax_attn.caches._rolling import RollingCache

__all__ = [
    "Cache",
    "KVCache",
    "PagedCache",
    "Quantized",
    "QuantizedCache",
    "RollingCache",
]


def __dir__() -> list[str]:
    return __all__
