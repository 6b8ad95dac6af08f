"""Split attention as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import (
    Activation,
    check_features,
    check_multiple,
    check_odd,
    check_positive,
    output_features,
    reduced_features,
)
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.nnx._sow import sow
from flax_attn.vision import split_attention


class SplitAttention(Module):
    """A convolution whose splits are weighed, `flax_attn.vision.split_attention`.

    Parameters `conv`, `conv_norm`, `reduce`, `reduce_norm`, `expand`, where `reduce` and `expand`
    are 1×1 convolutions; sows `gate` `[*B, 1, 1, S, C']`, what each channel takes of each split.

    Args:
      in_features: C.
      out_features: C', default C.
      radix: S, the number of splits.
      groups: K, the number of cardinal groups; the convolution has K · S.
      kernel_size: Width of the kernels, odd.
      strides: Step of the convolution.
      dilation: Spacing of its taps.
      reduction: R = max(min_features, C · S // reduction).
      min_features: The least R by the reduction.
      hidden_features: R, if not by the reduction.
      use_bias: Whether the convolution has a bias; `reduce` and `expand` always have.
      norm: Makes each normalisation, called as `norm(S · C', rngs=rngs)`.
      activation_fn: After each normalisation.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> conv = nnx.SplitAttention(32, out_features=64, strides=2, rngs=flax_nnx.Rngs(0))
      >>> conv(jnp.ones((2, 8, 8, 32))).shape
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
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        features = output_features("SplitAttention", in_features, out_features)
        radix = check_positive("SplitAttention", "radix", radix)
        groups = check_positive("SplitAttention", "groups", groups)
        check_multiple("SplitAttention", "C", in_features, "radix · groups", radix * groups)
        check_multiple("SplitAttention", "out_features", features, "groups", groups)
        hidden = reduced_features(
            "SplitAttention", in_features * radix, reduction, hidden_features, least=min_features
        )
        check_multiple("SplitAttention", "hidden_features", hidden, "groups", groups)
        size = check_odd("SplitAttention", kernel_size)
        check_positive("SplitAttention", "strides", strides)
        check_positive("SplitAttention", "dilation", dilation)
        conv = functools.partial(
            Conv,
            conv_general_dilated=convolve,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        pointwise = functools.partial(conv, kernel_size=(1, 1), feature_group_count=groups)
        self.conv = conv(
            in_features,
            radix * features,
            (size, size),
            strides=strides,
            kernel_dilation=dilation,
            padding=dilation * (size // 2),
            feature_group_count=radix * groups,
            use_bias=use_bias,
        )
        self.conv_norm = norm(radix * features, rngs=rngs)
        self.reduce = pointwise(features, hidden)
        self.reduce_norm = norm(hidden, rngs=rngs)
        self.expand = pointwise(hidden, radix * features)
        self.radix = radix
        self.groups = groups
        self.in_features = in_features
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`."""
        check_features("SplitAttention", x, self.in_features)
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
        sow(self, "gate", gate)
        return y
