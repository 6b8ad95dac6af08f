"""Convolutions that select among kernels, as Linen modules."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.vision import selective_kernel, split_attention
from flax_attn.vision._selective_kernel import selective_kernel_sizes
from flax_attn.vision._split_attention import split_attention_features


class SelectiveKernel(NormModule, kw_only=True):
    """A convolution that selects among kernels; see `flax_attn.nnx.SelectiveKernel`.

    Example:
      >>> linen.SelectiveKernel(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    out_features: int | None = None
    kernel_size: int = 3
    dilations: Sequence[int] = (1, 2)
    strides: int = 1
    groups: int = 32
    reduction: int = 16
    min_features: int = 32
    hidden_features: int | None = None
    use_bias: bool = False
    norm: Any = BatchNorm
    activation_fn: Activation = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        features, hidden, dilations = selective_kernel_sizes(
            features,
            out_features=self.out_features,
            kernel_size=self.kernel_size,
            dilations=self.dilations,
            strides=self.strides,
            groups=self.groups,
            reduction=self.reduction,
            min_features=self.min_features,
            hidden_features=self.hidden_features,
        )
        norm = self._norm(use_running_average)
        convs = [
            self._conv(
                features,
                self.kernel_size,
                f"conv_{i}",
                strides=self.strides,
                dilation=dilation,
                groups=self.groups,
            )
            for i, dilation in enumerate(dilations)
        ]
        y, gate = selective_kernel(
            x,
            convs,
            [norm(name=f"conv_norm_{i}") for i in range(len(dilations))],
            self._dense(hidden, "reduce"),
            norm(name="reduce_norm"),
            self._dense(len(dilations) * features, "select"),
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        return self._sown(y, gate=gate)


class SplitAttention(NormModule, kw_only=True):
    """A convolution with attention over its splits; see `flax_attn.nnx.SplitAttention`.

    Example:
      >>> linen.SplitAttention(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    out_features: int | None = None
    radix: int = 2
    groups: int = 1
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    reduction: int = 4
    min_features: int = 32
    hidden_features: int | None = None
    use_bias: bool = False
    norm: Any = BatchNorm
    activation_fn: Activation = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        features, hidden = split_attention_features(
            features,
            out_features=self.out_features,
            radix=self.radix,
            groups=self.groups,
            kernel_size=self.kernel_size,
            strides=self.strides,
            dilation=self.dilation,
            reduction=self.reduction,
            min_features=self.min_features,
            hidden_features=self.hidden_features,
        )
        norm = self._norm(use_running_average)
        conv = self._conv(
            self.radix * features,
            self.kernel_size,
            "conv",
            strides=self.strides,
            dilation=self.dilation,
            groups=self.radix * self.groups,
        )
        y, gate = split_attention(
            x,
            conv,
            norm(name="conv_norm"),
            self._conv(hidden, 1, "reduce", groups=self.groups, use_bias=True),
            norm(name="reduce_norm"),
            self._conv(self.radix * features, 1, "expand", groups=self.groups, use_bias=True),
            radix=self.radix,
            groups=self.groups,
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        return self._sown(y, gate=gate)
