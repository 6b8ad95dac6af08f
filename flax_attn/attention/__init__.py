"""Softmax attention and its family, as pure functions.

Letters: `B` batch (any number of leading axes), `T` query length, `S` key length, `N` query heads,
`K` key/value heads, `G = N // K` query heads per key head, `D` head size, `M` model features. The
layout is `[*B, T, N, D]`; query head n reads key head n // G; a mask is True where a query attends;
the LSE (log-sum-exp of a row of scores) is float32 `[*B, T, N]`.
"""

from flax_attn.attention.additive import additive_attention as additive_attention
from flax_attn.attention.attention_fn import attention_fn as attention_fn
from flax_attn.attention.dot_product import dot_product_attention as dot_product_attention
from flax_attn.attention.dropout import Dropout as Dropout
from flax_attn.attention.explain import Explanation as Explanation
from flax_attn.attention.explain import explain as explain
from flax_attn.attention.multi_head import multi_head_attention as multi_head_attention
from flax_attn.attention.partial import Partial as Partial
from flax_attn.attention.partial import finalize as finalize
from flax_attn.attention.partial import merge as merge
from flax_attn.attention.partial import partial as partial
from flax_attn.attention.scaled_dot_product import (
    scaled_dot_product_attention as scaled_dot_product_attention,
)
from flax_attn.attention.weights import attention_weights as attention_weights
