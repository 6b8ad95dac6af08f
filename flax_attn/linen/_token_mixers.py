"""Attention that mixes the places of an image as tokens, as Linen modules."""

from typing import Any

import jax
from flax import linen as nn
from flax.typing import Initializer

from flax_attn._checks import Activation, head_features, output_features
from flax_attn.linen._module import LayerModule, NormModule
from flax_attn.linen._norm import BatchNorm, LayerNorm, default_norm
from flax_attn.vision import (
    attention_pool,
    cross_covariance_attention,
    lambda_layer,
    outlook_attention,
    separable_attention,
    spatial_reduction_attention,
)
from flax_attn.vision._lambda_layer import lambda_layer_features
from flax_attn.vision._outlook_attention import num_scores
from flax_attn.vision._spatial_reduction_attention import spatial_reduction_head_dim


class AttentionPool(LayerModule, kw_only=True):
    """Attention pooling; see `flax_attn.nnx.AttentionPool`.

    Example:
      >>> linen.AttentionPool(out_features=10).init_with_output(key, x)[0].shape
      (2, 10)
    """

    num_heads: int = 8
    out_features: int | None = None
    use_bias: bool = True
    position_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        x, features = self._image(x)
        height, width = x.shape[-3:-1]
        heads = (self.num_heads, head_features("AttentionPool", features, self.num_heads))
        out_features = output_features("AttentionPool", features, self.out_features)
        shape = (1 + height * width, features)
        return attention_pool(
            x,
            self.param("positions", self.position_init, shape, self.param_dtype),
            self._general(heads, "query"),
            self._general(heads, "key"),
            self._general(heads, "value"),
            self._general(out_features, "out", axis=(-2, -1)),
            attention=self._attention(sow_weights),
        )


class SpatialReductionAttention(LayerModule, kw_only=True):
    """Spatial-reduction attention; see `flax_attn.nnx.SpatialReductionAttention`.

    Example:
      >>> linen.SpatialReductionAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    num_heads: int = 8
    reduction: int = 2
    pool_size: int | None = None
    activation_fn: Activation | None = None
    use_bias: bool = True
    norm: Any = default_norm(LayerNorm)

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        x, features = self._image(x)
        size = self.reduction
        heads = (self.num_heads, spatial_reduction_head_dim(features, self.num_heads, size))
        reduce = norm = None
        if size > 1 or self.pool_size is not None:
            reduce = self._conv(features, size, "reduce", strides=size, padding=0, use_bias=True)
            norm = self.norm(name="norm")
        return spatial_reduction_attention(
            x,
            self._general(heads, "query"),
            self._general(heads, "key"),
            self._general(heads, "value"),
            self._general(features, "out", axis=(-2, -1), use_bias=True),
            reduce=reduce,
            norm=norm,
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            attention=self._attention(sow_weights),
        )


class CrossCovarianceAttention(LayerModule, kw_only=True):
    """Cross-covariance attention; see `flax_attn.nnx.CrossCovarianceAttention`.

    Example:
      >>> linen.CrossCovarianceAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    num_heads: int = 8
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        heads = (
            self.num_heads,
            head_features("CrossCovarianceAttention", features, self.num_heads),
        )
        ones = nn.initializers.ones_init()
        y, weights = cross_covariance_attention(
            x,
            self._general(heads, "query"),
            self._general(heads, "key"),
            self._general(heads, "value"),
            self._general(features, "out", axis=(-2, -1), use_bias=True),
            self.param("temperature", ones, (self.num_heads,), self.param_dtype),
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)


class OutlookAttention(LayerModule, kw_only=True):
    """Outlook attention; see `flax_attn.nnx.OutlookAttention`.

    Example:
      >>> linen.OutlookAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    num_heads: int = 8
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        scores = num_scores(features, self.num_heads, self.kernel_size)
        y, weights = outlook_attention(
            x,
            self._dense(scores, "score", use_bias=True),
            self._dense(features, "value"),
            self._dense(features, "out", use_bias=True),
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)


class SeparableAttention(LayerModule, kw_only=True):
    """Separable self-attention; see `flax_attn.nnx.SeparableAttention`.

    Example:
      >>> linen.SeparableAttention(patch_size=2).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    patch_size: int = 1
    use_bias: bool = True
    activation_fn: Activation = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        y, weights = separable_attention(
            x,
            self._dense(1, "score"),
            self._dense(features, "key"),
            self._dense(features, "value"),
            self._dense(features, "out"),
            patch_size=self.patch_size,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)


class LambdaLayer(NormModule, kw_only=True):
    """The lambda layer; see `flax_attn.nnx.LambdaLayer`.

    Example:
      >>> linen.LambdaLayer(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    num_heads: int = 4
    key_features: int = 16
    kernel_size: int = 9
    use_bias: bool = False
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        value_features = lambda_layer_features(
            features, self.num_heads, self.key_features, self.kernel_size
        )
        norm = self._norm(use_running_average)
        return lambda_layer(
            x,
            self._dense(self.num_heads * self.key_features, "query"),
            norm(name="query_norm"),
            self._dense(self.key_features, "key"),
            self._dense(value_features, "value"),
            norm(name="value_norm"),
            self._conv(self.key_features, self.kernel_size, "position", use_bias=True),
        )
