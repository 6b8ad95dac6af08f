"""Split attention as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import (
    Activation,
    check_multiple,
    check_odd,
    check_positive,
    output_features,
    reduced_features,
)
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv
from flax_attn.linen._module import Module
from flax_attn.linen._norm import BatchNorm, with_phase
from flax_attn.vision import split_attention
from flax_attn.vision._checks import as_image


class SplitAttention(Module, kw_only=True):
    """A convolution whose splits are weighed, `flax_attn.vision.split_attention`.

    Parameters `conv`, `conv_norm`, `reduce`, `reduce_norm`, `expand`, where `reduce` and `expand`
    are 1×1 convolutions; sows `gate` `[*B, 1, 1, S, C']`, what each channel takes of each split.

    Attributes:
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
      norm: Makes each normalisation; by default batch normalisation with PyTorch's momentum and an
        exact variance. One of your own may know its phase:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      activation_fn: After each normalisation.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

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
    use_running_average: bool | None = None
    activation_fn: Activation = jax.nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Convolve an image `[*B, H, W, C]`. The phase is given here or before."""
        x = as_image("SplitAttention", x)
        features = output_features("SplitAttention", x.shape[-1], self.out_features)
        radix = check_positive("SplitAttention", "radix", self.radix)
        splits = radix * check_positive("SplitAttention", "groups", self.groups)
        check_multiple("SplitAttention", "C", x.shape[-1], "radix · groups", splits)
        check_multiple("SplitAttention", "out_features", features, "groups", self.groups)
        hidden = reduced_features(
            "SplitAttention",
            x.shape[-1] * radix,
            self.reduction,
            self.hidden_features,
            least=self.min_features,
        )
        check_multiple("SplitAttention", "hidden_features", hidden, "groups", self.groups)
        size = check_odd("SplitAttention", self.kernel_size)
        check_positive("SplitAttention", "strides", self.strides)
        check_positive("SplitAttention", "dilation", self.dilation)
        norm = with_phase(
            "SplitAttention", self.norm, self.use_running_average, use_running_average
        )
        conv = functools.partial(
            Conv,
            conv_general_dilated=convolve,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        pointwise = functools.partial(conv, kernel_size=(1, 1), feature_group_count=self.groups)
        y, gate = split_attention(
            x,
            conv(
                radix * features,
                (size, size),
                strides=self.strides,
                kernel_dilation=self.dilation,
                padding=self.dilation * (size // 2),
                feature_group_count=splits,
                use_bias=self.use_bias,
                name="conv",
            ),
            norm(name="conv_norm"),
            pointwise(hidden, name="reduce"),
            norm(name="reduce_norm"),
            pointwise(radix * features, name="expand"),
            radix=radix,
            groups=self.groups,
            activation_fn=self.activation_fn,
            return_gate=True,
        )
        self.sow("intermediates", "gate", gate)
        return y
