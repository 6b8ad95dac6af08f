"""Latent attention as a Linen module."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer, PrecisionLike

from flax_attn._checks import check_array
from flax_attn._latent_attention import MODULE, attend, create_cache, latent_sizes
from flax_attn.attention import Dropout
from flax_attn.attention._core.selection import Choice
from flax_attn.attention.latent import Form
from flax_attn.caches import Cache, KVCache
from flax_attn.coords import Coords
from flax_attn.linen._module import LayerModule
from flax_attn.masks import Mask, Plan
from flax_attn.normalizers import Normalizer
from flax_attn.scores import ScoreMod


class LatentAttention(LayerModule, kw_only=True):
    """Multi-head latent attention (MLA); see `flax_attn.nnx.LatentAttention`.

    Example:
      >>> attention = linen.LatentAttention(num_heads=4, kv_rank=16, nope_head_dim=8,
      ...                                   rope_head_dim=4)
      >>> tokens = jnp.ones((2, 10, 32))
      >>> variables = attention.init(key, tokens)
      >>> attention.apply(variables, tokens, is_causal=True).shape
      (2, 10, 32)
      >>> cache = attention.create_cache(10, batch=2)
      >>> y, cache = attention.apply(variables, tokens[:, :1], is_causal=True, cache=cache)
      >>> y.shape, cache.stored_keys.shape
      ((2, 1, 32), (2, 1, 10, 20))
    """

    num_heads: int
    kv_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int | None = None
    query_rank: int | None = None
    out_features: int | None = None
    rotary: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    mask: Mask | None = None
    score_mod: ScoreMod | None = None
    scale: float | None = None
    normalizer: Normalizer | None = None
    implementation: Choice = None
    precision: PrecisionLike = None
    epsilon: float = 1e-6
    use_bias: bool = dataclasses.field(default=False)

    @nn.compact
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
        """Attend from each token to the tokens of its sequence."""
        check_array(MODULE, "inputs", inputs)
        sizes = latent_sizes(self, inputs.shape[-1])
        norm = functools.partial(
            nn.RMSNorm, epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype
        )
        dense = functools.partial(self._general, precision=self.precision)
        layers: dict[str, Any] = {}
        if sizes.query_down is not None:
            layers["query_down"] = dense(sizes.query_down[1], "query_down")
            layers["query_norm"] = norm(name="query_norm")
        layers["query"] = dense(sizes.query[1], "query", use_bias=False)
        layers["kv_down"] = dense(sizes.kv_down[1], "kv_down")
        layers["kv_norm"] = norm(name="kv_norm")
        for name, (rank, heads) in (("key_up", sizes.key_up), ("value_up", sizes.value_up)):
            kernel = _Kernel((rank, *heads), self.kernel_init, self.param_dtype, name=name)
            layers[name] = kernel()
        layers["out"] = dense(sizes.out[1], "out", axis=(-2, -1))
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
        """An empty cache; see `flax_attn.nnx.LatentAttention.create_cache`."""
        return create_cache(self, capacity, batch, dtype, fields)


class _Kernel(nn.Module):
    """The kernel of a `DenseGeneral` `[R, N, D]` as an array, under the same name."""

    shape: tuple[int, int, int]
    kernel_init: Initializer
    param_dtype: Dtype

    @nn.compact
    def __call__(self) -> jax.Array:
        def flat(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
            kernel = self.kernel_init(key, (shape[0], math.prod(shape[1:])), dtype)
            return jax.tree.map(lambda x: x.reshape(shape), kernel)  # it may be in a box

        return self.param("kernel", flat, self.shape, self.param_dtype)
