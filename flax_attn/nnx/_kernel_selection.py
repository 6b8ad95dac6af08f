"""Convolutions that select among kernels, as NNX modules."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import selective_kernel, split_attention
from flax_attn.vision._selective_kernel import selective_kernel_sizes
from flax_attn.vision._split_attention import split_attention_features


class SelectiveKernel(Module):
    """A convolution that selects among kernels, `flax_attn.vision.selective_kernel`.

    Parameters `conv_0 ...`, `conv_norm_0 ...`, `reduce`, `reduce_norm`, `select`. Sows `gate`
    `[*B, P, 1, 1, C']`, the weight of each kernel for each channel.

    Args:
      dilations: Dilation of each of the P kernels.
      reduction: R = max(min_features, C' // reduction).

    Example:
      >>> nnx.SelectiveKernel(64, strides=2, rngs=rngs)(x).shape
      (2, 4, 4, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        out_features: int | None = None,
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 2),
        strides: int = 1,
        groups: int = 32,
        reduction: int = 16,
        min_features: int = 32,
        hidden_features: int | None = None,
        use_bias: bool = False,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        features, hidden, dilations = selective_kernel_sizes(
            in_features,
            out_features=out_features,
            kernel_size=kernel_size,
            dilations=dilations,
            strides=strides,
            groups=groups,
            reduction=reduction,
            min_features=min_features,
            hidden_features=hidden_features,
        )
        for i, dilation in enumerate(dilations):
            conv = layers.conv(
                in_features,
                features,
                kernel_size,
                strides=strides,
                dilation=dilation,
                groups=groups,
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"conv_norm_{i}", layers.norm(norm, features))
        self.reduce = layers.linear(features, hidden)
        self.reduce_norm = layers.norm(norm, hidden)
        self.select = layers.linear(hidden, len(dilations) * features)
        self.num_kernels = len(dilations)
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`."""
        self._check(x)
        y, gate = selective_kernel(
            x,
            [getattr(self, f"conv_{i}") for i in range(self.num_kernels)],
            [getattr(self, f"conv_norm_{i}") for i in range(self.num_kernels)],
            self.reduce,
            self.reduce_norm,
            self.select,
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        return self._sown(y, gate=gate)


class SplitAttention(Module):
    """A convolution with attention over its splits, `flax_attn.vision.split_attention`.

    Parameters `conv`, `conv_norm`, `reduce`, `reduce_norm`, `expand`, where `reduce` and `expand`
    are 1×1 convolutions. Sows `gate` `[*B, 1, 1, S, C']`, the weight of each split for each
    channel.

    Args:
      reduction: R = max(min_features, C · S // reduction).
      use_bias: If True, the convolution has a bias; `reduce` and `expand` always have one.

    Example:
      >>> nnx.SplitAttention(64, strides=2, rngs=rngs)(x).shape
      (2, 4, 4, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        out_features: int | None = None,
        radix: int = 2,
        groups: int = 1,
        kernel_size: int = 3,
        strides: int = 1,
        dilation: int = 1,
        reduction: int = 4,
        min_features: int = 32,
        hidden_features: int | None = None,
        use_bias: bool = False,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        features, hidden = split_attention_features(
            in_features,
            out_features=out_features,
            radix=radix,
            groups=groups,
            kernel_size=kernel_size,
            strides=strides,
            dilation=dilation,
            reduction=reduction,
            min_features=min_features,
            hidden_features=hidden_features,
        )
        self.conv = layers.conv(
            in_features,
            radix * features,
            kernel_size,
            strides=strides,
            dilation=dilation,
            groups=radix * groups,
        )
        self.conv_norm = layers.norm(norm, radix * features)
        self.reduce = layers.conv(features, hidden, 1, groups=groups, use_bias=True)
        self.reduce_norm = layers.norm(norm, hidden)
        self.expand = layers.conv(hidden, radix * features, 1, groups=groups, use_bias=True)
        self.radix = radix
        self.groups = groups
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`."""
        self._check(x)
        y, gate = split_attention(
            x,
            self.conv,
            self.conv_norm,
            self.reduce,
            self.reduce_norm,
            self.expand,
            radix=self.radix,
            groups=self.groups,
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        return self._sown(y, gate=gate)
