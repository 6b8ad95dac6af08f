"""Attention that mixes the places of an image as tokens, as NNX modules."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx
from flax.typing import Initializer

from flax_attn._checks import Activation, head_features, output_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm, LayerNorm
from flax_attn.vision import (
    attention_pool,
    cross_covariance_attention,
    lambda_layer,
    outlook_attention,
    separable_attention,
    spatial_reduction_attention,
)
from flax_attn.vision._checks import as_image
from flax_attn.vision._lambda_layer import lambda_layer_features
from flax_attn.vision._outlook_attention import num_scores
from flax_attn.vision._spatial_reduction_attention import spatial_reduction_head_dim
from flax_attn.vision._windows import as_pair


class AttentionPool(Module):
    """Attention pooling, `flax_attn.vision.attention_pool`.

    Parameters `query`, `key`, `value`, `out`, and `positions` `[1 + H · W, C]`.

    Args:
      input_size: (H, W), which all images must have.
      num_heads: N, of D = C // N channels each; C / 64 in CLIP.
      position_init: Initializer of the positions; variance 1 / C by default, as in CLIP.

    Example:
      >>> nnx.AttentionPool(64, (8, 8), out_features=10, rngs=rngs)(x).shape
      (2, 10)
    """

    def __init__(
        self,
        in_features: int,
        input_size: tuple[int, int],
        *,
        num_heads: int = 8,
        out_features: int | None = None,
        use_bias: bool = True,
        position_init: Initializer = nnx.initializers.variance_scaling(1.0, "fan_out", "normal"),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        height, width = as_pair("AttentionPool", "input_size", input_size, 1)
        heads = (num_heads, head_features("AttentionPool", in_features, num_heads))
        out_features = output_features("AttentionPool", in_features, out_features)
        self.positions = layers.param(position_init, 1 + height * width, in_features)
        self.query = layers.general(in_features, heads)
        self.key = layers.general(in_features, heads)
        self.value = layers.general(in_features, heads)
        self.out = layers.general(heads, out_features, axis=(-2, -1))
        self.input_size = (height, width)

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Pool `[*B, H, W, C]` to `[*B, M]`; may sow `attention_weights` `[*B, N, 1, 1 + H·W]`."""
        self._check(x)
        x = as_image("AttentionPool", x)
        if x.shape[-3:-1] != self.input_size:
            raise ValueError(
                f"AttentionPool: the image must have the size (H, W) = {self.input_size} that the "
                f"module was made for, got {list(x.shape)}."
            )
        return attention_pool(
            x,
            self.positions[...],
            self.query,
            self.key,
            self.value,
            self.out,
            attention=self._attention(sow_weights),
        )


class SpatialReductionAttention(Module):
    """Spatial-reduction attention, `flax_attn.vision.spatial_reduction_attention`.

    Parameters `query`, `key`, `value`, `out`, and `reduce`, `norm` if the image is reduced or
    pooled. The linear form of PVT v2 is `reduction=1, pool_size=7` with the exact GELU,
    `activation_fn=functools.partial(jax.nn.gelu, approximate=False)`.

    Args:
      reduction: R, the kernel size and strides of `reduce`: 8, 4, 2, 1 in the four stages of the
        paper.
      use_bias: If True, queries, keys and values have biases; the other layers always have.
      norm: Makes the normalisation after `reduce`.

    Example:
      >>> nnx.SpatialReductionAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        reduction: int = 2,
        pool_size: int | None = None,
        activation_fn: Activation | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = LayerNorm,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        size = reduction
        heads = (num_heads, spatial_reduction_head_dim(in_features, num_heads, size))
        self.query = layers.general(in_features, heads)
        self.key = layers.general(in_features, heads)
        self.value = layers.general(in_features, heads)
        self.out = layers.general(heads, in_features, axis=(-2, -1), use_bias=True)
        self.reduce = self.norm = nnx.data(None)
        if size > 1 or pool_size is not None:
            self.reduce = layers.conv(
                in_features, in_features, size, strides=size, padding=0, use_bias=True
            )
            self.norm = layers.norm(norm, in_features)
        self.pool_size, self.activation_fn = pool_size, activation_fn

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend to the reduced image; may sow `attention_weights` `[*B, N, T, S]`."""
        self._check(x)
        return spatial_reduction_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            reduce=self.reduce,
            norm=self.norm,
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            attention=self._attention(sow_weights),
        )


class CrossCovarianceAttention(Module):
    """Cross-covariance attention, `flax_attn.vision.cross_covariance_attention`.

    Parameters `query`, `key`, `value`, `out`, `temperature`. Sows `attention_weights`
    `[*B, N, D, D]`.

    Args:
      use_bias: If True, queries, keys and values have biases; `out` always has one.

    Example:
      >>> nnx.CrossCovarianceAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        use_bias: bool = False,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        heads = (num_heads, head_features("CrossCovarianceAttention", in_features, num_heads))
        self.query = layers.general(in_features, heads)
        self.key = layers.general(in_features, heads)
        self.value = layers.general(in_features, heads)
        self.out = layers.general(heads, in_features, axis=(-2, -1), use_bias=True)
        self.temperature = layers.constant(1, num_heads)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = cross_covariance_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            self.temperature[...],
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)


class OutlookAttention(Module):
    """Outlook attention, `flax_attn.vision.outlook_attention`.

    Parameters `score`, `value`, `out`. Sows `attention_weights` `[*B, H', W', N, k², k²]`.

    Args:
      num_heads: N, of D = C // N channels each; C / 32 in the paper.
      use_bias: If True, the values have a bias; the other layers always have one.

    Example:
      >>> nnx.OutlookAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        kernel_size: int = 3,
        stride: int = 1,
        use_bias: bool = False,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        scores = num_scores(in_features, num_heads, kernel_size)
        self.score = layers.linear(in_features, scores, use_bias=True)
        self.value = layers.linear(in_features, in_features)
        self.out = layers.linear(in_features, in_features, use_bias=True)
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the neighbouring places of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = outlook_attention(
            x,
            self.score,
            self.value,
            self.out,
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)


class SeparableAttention(Module):
    """Separable self-attention, `flax_attn.vision.separable_attention`.

    Parameters `score`, `key`, `value`, `out`. Sows `attention_weights` `[*B, H, W, 1]`.

    Example:
      >>> nnx.SeparableAttention(64, patch_size=2, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        patch_size: int = 1,
        use_bias: bool = True,
        activation_fn: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        self.score = layers.linear(in_features, 1)
        self.key = layers.linear(in_features, in_features)
        self.value = layers.linear(in_features, in_features)
        self.out = layers.linear(in_features, in_features)
        self.patch_size, self.activation_fn = patch_size, activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = separable_attention(
            x,
            self.score,
            self.key,
            self.value,
            self.out,
            patch_size=self.patch_size,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)


class LambdaLayer(Module):
    """The lambda layer, `flax_attn.vision.lambda_layer`.

    Parameters `query`, `query_norm`, `key`, `value`, `value_norm`, `position`.

    Args:
      num_heads: N; the values have C // N channels.
      key_features: K, the channels of the keys and of each head's queries.
      kernel_size: r, the size of the lambda convolution, odd.
      use_bias: If True, queries, keys and values have biases; the convolution always has one.

    Example:
      >>> nnx.LambdaLayer(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 4,
        key_features: int = 16,
        kernel_size: int = 9,
        use_bias: bool = False,
        norm: Callable[..., Any] = BatchNorm,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        value_features = lambda_layer_features(in_features, num_heads, key_features, kernel_size)
        query_features = num_heads * key_features
        self.query = layers.linear(in_features, query_features)
        self.query_norm = layers.norm(norm, query_features)
        self.key = layers.linear(in_features, key_features)
        self.value = layers.linear(in_features, value_features)
        self.value_norm = layers.norm(norm, value_features)
        self.position = layers.conv(1, key_features, kernel_size, use_bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix the places of an image `[*B, H, W, C]`."""
        self._check(x)
        return lambda_layer(
            x, self.query, self.query_norm, self.key, self.value, self.value_norm, self.position
        )
