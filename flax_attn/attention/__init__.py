"""Softmax attention and its family, as pure functions.

Letters: `B` batch (any number of leading axes), `T` query length, `S` key length, `N` query heads,
`K` key/value heads, `G = N // K` query heads per key head, `D` head size, `M` model features. The
layout is `[*B, T, N, D]`; query head n reads key head n // G; a mask is True where a query attends;
the LSE (log-sum-exp of a row of scores) is float32 `[*B, T, N]`.
"""

from flax_attn.attention._attention_fn import attention_fn
from flax_attn.attention._explain import Explanation, explain
from flax_attn.attention._partial import Partial, finalize, merge, partial
from flax_attn.attention.additive import additive_attention
from flax_attn.attention.blockwise import Blockwise
from flax_attn.attention.cudnn import Cudnn
from flax_attn.attention.decode import Decode
from flax_attn.attention.dense import Dense
from flax_attn.attention.dot_product import dot_product_attention
from flax_attn.attention.dropout import Dropout
from flax_attn.attention.latent import latent_attention
from flax_attn.attention.multi_head import multi_head_attention
from flax_attn.attention.pallas_tpu import PallasTPU
from flax_attn.attention.scaled_dot_product import scaled_dot_product_attention
from flax_attn.attention.weights import attention_weights

__all__ = [
    "Blockwise",
    "Cudnn",
    "Decode",
    "Dense",
    "Dropout",
    "Explanation",
    "PallasTPU",
    "Partial",
    "additive_attention",
    "attention_fn",
    "attention_weights",
    "dot_product_attention",
    "explain",
    "finalize",
    "latent_attention",
    "merge",
    "multi_head_attention",
    "partial",
    "scaled_dot_product_attention",
]


def __dir__() -> list[str]:
    return __all__
