"""The sentence encoder MiniLM: a BERT whose output is averaged over the tokens of a sentence.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
Transformers", NeurIPS 2020, arXiv:2002.10957; Devlin et al., "BERT", NAACL 2019, arXiv:1810.04805;
Reimers, Gurevych, "Sentence-BERT", EMNLP 2019, arXiv:1908.10084.

The segment of a token is its sentence. So a batch has any form: one padded sentence per row, or all
sentences packed in one row (`language_models.batches`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from flax_attn import Coords, masks

LayerNorm = functools.partial(nnx.LayerNorm, epsilon=1e-12, use_fast_variance=False)


class Block(nnx.Module):
    """A post-normalised block: y = norm(x + attention(x)), z = norm(y + contract(δ(expand(y))))."""

    def __init__(
        self, features: int, mlp_features: int, num_heads: int, implementation: Any, rngs: nnx.Rngs
    ):
        self.attention = flax_attn.nnx.MultiHeadAttention(
            num_heads, features, implementation=implementation, rngs=rngs
        )
        self.attention_norm = LayerNorm(features, rngs=rngs)
        self.expand = nnx.Linear(features, mlp_features, rngs=rngs)
        self.contract = nnx.Linear(mlp_features, features, rngs=rngs)
        self.mlp_norm = LayerNorm(features, rngs=rngs)

    def __call__(self, x: jax.Array, coords: Coords, **options: Any) -> jax.Array:
        """From `[*B, T, features]` to the same."""
        y = self.attention(x, mask=masks.SameSegment(), query_coords=coords, **options)
        x = self.attention_norm(x + y)
        y = self.contract(jax.nn.gelu(self.expand(x), approximate=False))
        return self.mlp_norm(x + y)


class MiniLM(nnx.Module):
    """From tokens `[*B, T]` to features `[*B, T, M]`, or with `embed` to one vector per sentence.

    The sizes are those of all-MiniLM-L6-v2. `implementation` is that of the attention.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        max_length: int = 512,
        features: int = 384,
        mlp_features: int = 1536,
        num_heads: int = 12,
        depth: int = 6,
        implementation: Any = None,
        rngs: nnx.Rngs,
    ):
        self.words = nnx.Embed(vocab_size, features, rngs=rngs)
        self.positions = flax_attn.nnx.LearnedPositions(max_length, features, rngs=rngs)
        self.types = nnx.Embed(2, features, rngs=rngs)  # BERT's first and second text; here all 0
        self.norm = LayerNorm(features, rngs=rngs)
        self.blocks = nnx.List(
            Block(features, mlp_features, num_heads, implementation, rngs) for _ in range(depth)
        )

    def __call__(self, tokens: jax.Array, coords: Coords, **options: Any) -> jax.Array:
        """The features of the tokens; `sow_weights=True` sows the attention of each block."""
        types = self.types(jnp.zeros_like(tokens))
        x = self.norm(self.words(tokens) + self.positions(coords.positions) + types)
        for block in self.blocks:
            x = block(x, coords, **options)
        return x

    def embed(self, tokens: jax.Array, coords: Coords, num_sentences: int) -> jax.Array:
        """The mean over the tokens of each segment, with norm 1 `[num_sentences, M]`."""
        x = self(tokens, coords)
        is_valid = True if coords.valid is None else coords.valid
        segments = jnp.where(is_valid, coords.segment_ids, num_sentences)  # out of range: left out
        sums = jax.ops.segment_sum(x.reshape(-1, x.shape[-1]), segments.reshape(-1), num_sentences)
        return sums / jnp.linalg.norm(sums, axis=-1, keepdims=True)  # as of the mean
