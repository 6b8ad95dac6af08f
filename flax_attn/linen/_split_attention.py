"""Split attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.vision import split_attention
from flax_attn.vision._split_attention import split_attention_features


class SplitAttention(NormModule, kw_only=True):
    """A convolution with attention over its splits, `flax_attn.vision.split_attention`.

    Parameters `conv`, `conv_norm`, `reduce`, `reduce_norm`, `expand`, where `reduce` and `expand`
    are 1×1 convolutions. Sows `gate` `[*B, 1, 1, S, C']`, the weight of each split for each
    channel.

    Attributes:
      out_features: C'; C by default.
      radix: S, the number of splits.
      groups: K, the number of cardinal groups; the convolution has K · S groups.
      kernel_size: Size of the kernels, odd.
      strides: Strides of the convolution.
      dilation: Its dilation.
      reduction: R = max(min_features, C · S // reduction).
      min_features: The smallest R that `reduction` gives.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the convolution has a bias; `reduce` and `expand` always have one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> conv = linen.SplitAttention(out_features=64, strides=2, use_running_average=True)
      >>> conv.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 32)))[0].shape
      (2, 4, 4, 64)
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
        """Convolve an image `[*B, H, W, C]`."""
        x = self._image(x)
        features, hidden = split_attention_features(
            x.shape[-1],
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
            use_bias=self.use_bias,
            strides=self.strides,
            dilation=self.dilation,
            groups=self.radix * self.groups,
        )
        y, gate = split_attention(
            x,
            conv,
            norm(name="conv_norm"),
            self._conv(hidden, 1, "reduce", groups=self.groups),
            norm(name="reduce_norm"),
            self._conv(self.radix * features, 1, "expand", groups=self.groups),
            radix=self.radix,
            groups=self.groups,
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        self.sow("intermediates", "gate", gate)
        return y
