"""Latent attention as an NNX module."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, PrecisionLike

from flax_attn._checks import check_features
from flax_attn._latent_attention import MODULE, attend, create_cache, latent_sizes
from flax_attn.attention import Dropout
from flax_attn.attention._core.selection import Choice
from flax_attn.attention.latent import Form
from flax_attn.caches import Cache, KVCache
from flax_attn.coords import Coords
from flax_attn.masks import Mask, Plan
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.normalizers import Normalizer
from flax_attn.scores import ScoreMod


class LatentAttention(Module):
    """Multi-head latent attention (MLA), `flax_attn.attention.latent_attention`.

    Parameters, with the names of Hugging Face's DeepSeek-V3:

    | here | there | kernel |
    |---|---|---|
    | `query_down`, `query_norm` | `q_a_proj`, `q_a_layernorm` | `[M, Rq]`, with `query_rank` only |
    | `query` | `q_b_proj`, or `q_proj` | `[Rq, N, Dn + Dr]`, or `[M, N, Dn + Dr]` |
    | `kv_down`, `kv_norm` | `kv_a_proj_with_mqa`, `kv_a_layernorm` | `[M, R + Dr]` |
    | `key_up`, `value_up` | `kv_b_proj` | `[R, N, Dn]`, `[R, N, Dv]` |
    | `out` | `o_proj` | `[N, Dv, M]` |

    The norms are RMS norms. PyTorch's weights are transposed, and the head axis is split off: W of
    `kv_b_proj` gives `key_up, value_up = np.split(W.T.reshape(R, N, Dn + Dv), [Dn], axis=-1)`.

    Args:
      kv_rank: R, the size of the latent of keys and values.
      nope_head_dim: Dn, the features of a query and key head without positions.
      rope_head_dim: Dr, the rotated features, even. A head has Dn + Dr features.
      value_head_dim: Dv; Dn by default.
      query_rank: Rq, the size of the queries' latent. None for queries without one.
      rotary: `positions.Rotary(Dr, layout="interleaved")` by default. A function of heads and
        positions may stand in its place.
      mask: A `Mask` for every call, such as `masks.Causal()`. A mask of the call is joined with it.
      score_mod: A `ScoreMod` for every call, applied before that of the call.
      scale: Factor of the scores; 1/√(Dn + Dr) by default.
      normalizer: From scores to weights.
      implementation: As in `flax_attn.dot_product_attention`.
      precision: Precision of all dot products.
      epsilon: Of the norms.
      use_bias: If True, `query_down`, `kv_down` and `out` have biases, as in DeepSeek's code.

    Example:
      >>> attention = nnx.LatentAttention(32, num_heads=4, kv_rank=16, nope_head_dim=8,
      ...                                 rope_head_dim=4, rngs=rngs)
      >>> attention(jnp.ones((2, 10, 32)), is_causal=True).shape
      (2, 10, 32)
      >>> cache = attention.create_cache(10, batch=2)
      >>> y, cache = attention(jnp.ones((2, 1, 32)), is_causal=True, cache=cache)
      >>> y.shape, cache.stored_keys.shape
      ((2, 1, 32), (2, 1, 10, 20))
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int,
        kv_rank: int,
        nope_head_dim: int,
        rope_head_dim: int,
        value_head_dim: int | None = None,
        query_rank: int | None = None,
        out_features: int | None = None,
        rotary: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        mask: Mask | None = None,
        score_mod: ScoreMod | None = None,
        scale: float | None = None,
        normalizer: Normalizer | None = None,
        implementation: Choice = None,
        precision: PrecisionLike = None,
        epsilon: float = 1e-6,
        use_bias: bool = False,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        self.num_heads = num_heads
        self.kv_rank = kv_rank
        self.nope_head_dim = nope_head_dim
        self.rope_head_dim = rope_head_dim
        self.value_head_dim = value_head_dim
        self.query_rank = query_rank
        self.out_features = out_features
        self.rotary = rotary
        self.mask = nnx.data(mask)
        self.score_mod = nnx.data(score_mod)
        self.scale = scale
        self.normalizer = nnx.data(normalizer)
        self.implementation = implementation
        self.precision = precision
        sizes = latent_sizes(self, in_features)
        dense = functools.partial(layers.general, precision=precision)
        norm = functools.partial(
            nnx.RMSNorm,
            epsilon=epsilon,
            dtype=layer_options.get("dtype"),
            param_dtype=layers.param_dtype,
            rngs=rngs,
        )
        self.query_down = self.query_norm = nnx.data(None)
        if sizes.query_down is not None:
            self.query_down = dense(*sizes.query_down)
            self.query_norm = norm(sizes.query_down[1])
        self.query = dense(*sizes.query, use_bias=False)
        self.kv_down = dense(*sizes.kv_down)
        self.kv_norm = norm(kv_rank)
        self.key_up = dense(*sizes.key_up, use_bias=False)
        self.value_up = dense(*sizes.value_up, use_bias=False)
        self.out = dense(*sizes.out, axis=(-2, -1))

    def __call__(
        self,
        inputs: jax.Array,
        *,
        mask: Mask | jax.Array | None = None,
        bias: jax.Array | None = None,
        is_causal: bool = False,
        score_mod: ScoreMod | None = None,
        coords: Coords | None = None,
        plan: Plan | None = None,
        dropout: Dropout | None = None,
        cache: Cache | None = None,
        form: Form | None = None,
        sow_weights: bool = False,
    ) -> Any:
        """Attend from each token to the tokens of its sequence.

        Args:
          inputs: `[*B, T, M]`.
          mask: A `flax_attn.masks.Mask`; or an array that broadcasts to `[*B, N, T, S]`, True or 1
            where a query attends.
          bias: Added to the scaled scores; broadcasts to `[*B, N, T, S]`.
          is_causal: If True, a token attends to those at its position or before.
          score_mod: Changes the scores: a `flax_attn.scores.ScoreMod`.
          coords: Coordinates of the tokens.
          plan: The block map of the mask, made once for many layers by `flax_attn.make_plan`.
          dropout: `flax_attn.Dropout(rate, key)`.
          cache: A cache such as that of `create_cache`. The tokens are appended to it, and attend
            to all that it holds.
          form: `"naive"` or `"absorbed"`, as in `latent_attention`. Default: absorbed with a cache.
          sow_weights: If True, sows `attention_weights` `[*B, N, T, S]`, before dropout.

        Returns:
          The output `[*B, T, M]`; with a cache also the new cache.
        """
        check_features(MODULE, inputs, self.kv_down.in_features[0], "inputs")
        layers = {name: getattr(self, name) for name in ("query", "kv_down", "kv_norm", "out")}
        layers |= {"query_down": self.query_down, "query_norm": self.query_norm}
        layers |= {name: getattr(self, name).kernel[...] for name in ("key_up", "value_up")}
        return attend(
            self,
            inputs,
            layers,
            self._attention(sow_weights),
            mask=mask,
            bias=bias,
            is_causal=is_causal,
            score_mod=score_mod,
            coords=coords,
            plan=plan,
            dropout=dropout,
            cache=cache,
            form=form,
        )

    def create_cache(
        self,
        capacity: int,
        *,
        batch: int | tuple[int, ...] = (),
        dtype: Dtype = jnp.float32,
        fields: Mapping[str, Dtype] | None = None,
    ) -> KVCache:
        """An empty cache of the compressed keys and values, R + Dr numbers per token.

        Other caches of `flax_attn.caches` serve as well: create them with `num_kv_heads=1`,
        `head_dim=R + Dr` and `value_head_dim=0`.

        Args:
          capacity: How many tokens of a sequence can be stored.
          batch: Batch axes: a number or several.
          dtype: dtype of the layers' output.
          fields: Names and dtypes of the coordinates besides positions.
        """
        return create_cache(self, capacity, batch, dtype, fields)
