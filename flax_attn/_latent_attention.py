"""What the Linen and NNX modules of latent attention share: sizes, checks, and the call."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from flax_attn._checks import check_array, check_at_least, check_positive
from flax_attn._modules import joined_mask, joined_score_mod
from flax_attn.attention import latent_attention
from flax_attn.attention._flax_masks import as_boolean
from flax_attn.caches import Cache, KVCache
from flax_attn.masks import Mask
from flax_attn.positions import Rotary
from flax_attn.scores import ScoreMod

MODULE = "LatentAttention"


class LatentSizes(NamedTuple):
    """The sizes of the layers: kernels from the first number to the others."""

    query_down: tuple[int, int] | None
    query: tuple[int, tuple[int, int]]
    kv_down: tuple[int, int]
    key_up: tuple[int, tuple[int, int]]
    value_up: tuple[int, tuple[int, int]]
    out: tuple[tuple[int, int], int]


def latent_sizes(module: Any, in_features: int) -> LatentSizes:
    """The sizes of the layers, from the checked arguments of a module.

    Args:
      module: The module, with its arguments as attributes.
      in_features: M, the features of its input.
    """
    num_heads = check_positive(MODULE, "num_heads", module.num_heads)
    rank = check_positive(MODULE, "kv_rank", module.kv_rank)
    nope = check_positive(MODULE, "nope_head_dim", module.nope_head_dim)
    value = nope
    if module.value_head_dim is not None:
        value = check_positive(MODULE, "value_head_dim", module.value_head_dim)
    rope = check_at_least(MODULE, "rope_head_dim", module.rope_head_dim, 2)
    if rope % 2:
        raise ValueError(
            f"{MODULE}: rope_head_dim must be even, as features are rotated in pairs, got {rope}."
        )
    rotated = getattr(module.rotary, "head_dim", rope)
    if rotated != rope:
        raise ValueError(
            f"{MODULE}: rotary must be made for rope_head_dim = {rope} features, got "
            f"Rotary({rotated}, ...). Write Rotary({rope}, ...)."
        )
    query_rank = in_features
    if module.query_rank is not None:
        query_rank = check_positive(MODULE, "query_rank", module.query_rank)
    out_features = in_features
    if module.out_features is not None:
        out_features = check_positive(MODULE, "out_features", module.out_features)
    return LatentSizes(
        None if module.query_rank is None else (in_features, query_rank),
        (query_rank, (num_heads, nope + rope)),
        (in_features, rank + rope),
        (rank, (num_heads, nope)),
        (rank, (num_heads, value)),
        ((num_heads, value), out_features),
    )


def create_cache(
    module: Any,
    capacity: int,
    batch: int | tuple[int, ...],
    dtype: Any,
    fields: Mapping[str, Any] | None,
) -> KVCache:
    """An empty cache of the compressed keys and values of a module."""
    rank = check_positive(MODULE, "kv_rank", module.kv_rank)
    rope = check_at_least(MODULE, "rope_head_dim", module.rope_head_dim, 2)
    return KVCache.create(
        capacity,
        num_kv_heads=1,
        head_dim=rank + rope,
        batch=batch,
        value_head_dim=0,
        dtype=dtype,
        fields=fields,
    )


def attend(
    module: Any,
    inputs: jax.Array,
    layers: Mapping[str, Any],
    attention: Callable[..., jax.Array],
    *,
    mask: Mask | jax.Array | None,
    is_causal: bool,
    score_mod: ScoreMod | None,
    cache: Cache | None,
    **options: Any,
) -> Any:
    """Call `latent_attention` with the settings of a module and the options of its call.

    Args:
      module: The module, with its arguments as attributes.
      inputs: `[*B, T, M]`.
      layers: The maps and arrays of `latent_attention`, by name.
      attention: Attention on heads.
      mask: The mask of the call, which is joined with that of the module.
      is_causal: Whether queries see only keys at their own position or before.
      score_mod: The score modifier of the call, applied after that of the module.
      cache: The cache, or None.
      **options: Further options, left out where they are None.
    """
    check_array(MODULE, "inputs", inputs)
    if cache is not None and not isinstance(cache, Cache):
        raise TypeError(
            f"{MODULE}: cache must be a cache of flax_attn.caches, got {type(cache).__name__}. "
            f"Make one: create_cache(capacity, batch=...)."
        )
    rotary = module.rotary
    options = {
        "mask": joined_mask(module.mask, as_boolean(MODULE, mask)),
        "score_mod": joined_score_mod(module.score_mod, score_mod),
        "normalizer": module.normalizer,
        "precision": module.precision,
        "implementation": module.implementation,
        "scale": module.scale,
        "is_causal": is_causal or None,
        **options,
    }
    return latent_attention(
        inputs,
        **layers,
        rotary=Rotary(module.rope_head_dim, layout="interleaved") if rotary is None else rotary,
        cache=cache,
        attention=attention,
        **{name: option for name, option in options.items() if option is not None},
    )
