"""A language model of the Llama architecture, in NNX with the attention of flax_attn.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023, arXiv:2302.13971;
grouped heads as in Ainslie et al., "GQA", EMNLP 2023, arXiv:2305.13245.

A call without caches is one pass over whole sequences, as in training. With caches it continues
them: by one token, or by a prompt of any length.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_attn.nnx
from flax_attn import Coords, caches, masks, positions
from language_models.gguf_llama import LlamaConfig


class Block(nnx.Module):
    """y = x + attention(norm(x)), z = y + down(silu(gate(norm(y))) ∘ up(norm(y)))."""

    def __init__(self, config: LlamaConfig, layer: dict[str, Any], **options: Any):
        width, hidden = config.features, config.mlp_features
        self.attention_norm = nnx.RMSNorm(width, epsilon=config.norm_epsilon, **layer)
        self.attention = flax_attn.nnx.MultiHeadAttention(
            config.num_heads,
            width,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            use_bias=False,
            rotary=rotary_of(config),
            **layer,
            **options,
        )
        self.mlp_norm = nnx.RMSNorm(width, epsilon=config.norm_epsilon, **layer)
        self.gate = nnx.Linear(width, hidden, use_bias=False, **layer)
        self.up = nnx.Linear(width, hidden, use_bias=False, **layer)
        self.down = nnx.Linear(hidden, width, use_bias=False, **layer)

    def __call__(self, x: jax.Array, cache: caches.Cache | None, **options: Any) -> Any:
        """From `[*B, T, M]` to the same, and the new cache."""
        y = self.attention(self.attention_norm(x), cache=cache, **options)
        if cache is not None:
            y, cache = y
        x = x + y
        y = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y)), cache


class Llama(nnx.Module):
    """From tokens `[*B, T]` to logits `[*B, T, V]`. `options` are those of the attention."""

    def __init__(
        self, config: LlamaConfig, *, param_dtype: Any = None, rngs: nnx.Rngs, **options: Any
    ):
        layer = {"param_dtype": param_dtype or jnp.float32, "rngs": rngs}
        self.config = config
        self.embedding = nnx.Embed(config.vocab_size, config.features, **layer)
        self.blocks = nnx.List(Block(config, layer, **options) for _ in range(config.num_layers))
        self.norm = nnx.RMSNorm(config.features, epsilon=config.norm_epsilon, **layer)
        self.head = nnx.data(None)
        if not config.tied_embeddings:
            self.head = nnx.Linear(config.features, config.vocab_size, use_bias=False, **layer)

    def __call__(
        self,
        tokens: jax.Array,
        layer_caches: Sequence[caches.Cache] | None = None,
        coords: Coords | None = None,
        *,
        last_only: bool = False,
        **options: Any,
    ) -> Any:
        """The logits of the next tokens; with caches also the new caches.

        Args:
          tokens: `[*B, T]`.
          layer_caches: One cache for each block.
          coords: Positions, padding and segments of the tokens; by default 0 ... T − 1, or what
            follows the tokens in the caches. Tokens of other segments are hidden.
          last_only: If True, only the logits of the last valid token are computed `[*B, 1, V]`.
          **options: Of each attention, such as `sow_weights=True`.
        """
        mask: Any = masks.Causal()
        if coords is not None and coords.segment_ids is not None:
            mask &= masks.SameSegment()
        x, made = self.embedding(tokens), []
        for i, block in enumerate(self.blocks):
            cache = None if layer_caches is None else layer_caches[i]
            x, cache = block(x, cache, mask=mask, query_coords=coords, **options)
            made.append(cache)
        if last_only:
            x = last_valid(x, coords)
        x = self.norm(x)
        if self.head is None:
            logits = jnp.einsum("...m,vm->...v", x, self.embedding.embedding[...])
        else:
            logits = self.head(x)
        return logits if layer_caches is None else (logits, made)

    def make_caches(self, make: Callable[..., caches.Cache], **options: Any) -> list[caches.Cache]:
        """An empty cache for each block, by `make(num_kv_heads=, head_dim=, **options)`."""
        sizes = {"num_kv_heads": self.config.num_kv_heads, "head_dim": self.config.head_dim}
        return [make(**sizes, **options) for _ in self.blocks]


def rotary_of(config: LlamaConfig) -> positions.Rotary:
    """The rotary positions of a model."""
    scaling = None
    if config.rotary_factors is not None:  # the same for short and for long sequences
        factors = tuple(config.rotary_factors)
        scaling = positions.LongRoPE(factors, factors, config.context_length, attention_factor=1.0)
    layout: Any = config.rotary_layout
    length = config.context_length
    return positions.Rotary(config.head_dim, config.rotary_base, scaling, layout, length=length)


def last_valid(x: jax.Array, coords: Coords | None) -> jax.Array:
    """The features of the last valid token of each sequence `[*B, 1, M]`."""
    if coords is None or coords.valid is None:
        return x[..., -1:, :]
    valid = jnp.broadcast_to(coords.valid, x.shape[:-1])
    last = jnp.max(jnp.where(valid, jnp.arange(x.shape[-2]), 0), axis=-1)
    return jnp.take_along_axis(x, last[..., None, None], axis=-2)


def load_weights(model: Llama, weights: Mapping[str, np.ndarray]) -> None:
    """Fill a model, which may be abstract, with the weights that `read_weights` returns."""
    state = nnx.state(model, nnx.Param)
    for path, param in nnx.to_flat_state(state):
        names = [str(name) for name in path[:-1] if name not in ("attention",)]
        name = ".".join(names).replace("blocks.", "layers.")
        param.set_value(jnp.asarray(weights[name]))
    nnx.update(model, state)
