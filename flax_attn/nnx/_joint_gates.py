"""Gates of channels and places together, as NNX modules."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd, group_features, reduced_features
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn.nnx._channel_gates import ChannelAttention
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.nnx._spatial_gates import SpatialAttention
from flax_attn.vision import (
    bam_gate,
    efficient_multi_scale_attention_gate,
    polarized_attention_gate,
    shuffle_attention_gate,
    spatial_group_enhance_gate,
)
from flax_attn.vision._bam import check_bam
from flax_attn.vision._polarized_attention import Layout, polarized_attention_features
from flax_attn.vision._scse import Combine, scse_and_gate
from flax_attn.vision._shuffle_attention import channel_shuffle
from flax_attn.vision._spatial_attention import Pooling


class CBAM(Module):
    """CBAM, `flax_attn.vision.cbam`: channel attention, then spatial attention.

    Submodules `channel` and `spatial`, each with its own parameters and gate.

    Args:
      reduction: R = C // reduction; 16 in the paper.
      kernel_size: Size of the spatial kernel, odd; 7 in the paper.
      use_bias: If True, the perceptron has biases, as in the released models of the paper.
      norm: Makes the normalisation of the spatial map; None for none.

    Example:
      >>> nnx.CBAM(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        kernel_size: int = 3,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        order: Sequence[Pooling] = ("mean", "max"),
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        self._set_in_features(in_features)
        self.channel = ChannelAttention(
            in_features,
            reduction=reduction,
            hidden_features=hidden_features,
            use_bias=use_bias,
            activation_fn=activation_fn,
            gate_fn=gate_fn,
            rngs=rngs,
            **layer_options,
        )
        self.spatial = SpatialAttention(
            in_features,
            kernel_size=kernel_size,
            norm=norm,
            order=order,
            gate_fn=gate_fn,
            rngs=rngs,
            **layer_options,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels, then the places of an image `[*B, H, W, C]`."""
        return self.spatial(self.channel(x))


class BAM(Module):
    """The bottleneck attention module, `flax_attn.vision.bam`.

    Parameters `reduce`, `reduce_norm`, `expand`, `conv_0 ...`, `conv_norm_0 ...`, `project`. Sows
    `gate` `[*B, H, W, C]`, the factor 1 + σ(M_c + M_s).

    Args:
      num_convs: Number of dilated convolutions; they follow a pointwise one.

    Example:
      >>> nnx.BAM(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 16,
        hidden_features: int | None = None,
        kernel_size: int = 3,
        dilation: int = 4,
        num_convs: int = 2,
        combine: Literal["add", "multiply"] = "add",
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        check_bam(kernel_size, dilation, num_convs)
        hidden = reduced_features("BAM", in_features, reduction, hidden_features)
        self.reduce = layers.linear(in_features, hidden)
        self.reduce_norm = layers.norm(norm, hidden)
        self.expand = layers.linear(hidden, in_features)
        self.conv_0 = layers.linear(in_features, hidden)
        for i in range(1, num_convs + 1):
            conv = layers.conv(hidden, hidden, kernel_size, dilation=dilation)
            setattr(self, f"conv_{i}", conv)
        for i in range(num_convs + 1):
            setattr(self, f"conv_norm_{i}", layers.norm(norm, hidden))
        self.project = layers.linear(hidden, 1)
        self.num_convs = num_convs
        self.combine = combine
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = bam_gate(
            x,
            self.reduce,
            self.reduce_norm,
            self.expand,
            [getattr(self, f"conv_{i}") for i in range(self.num_convs + 1)],
            [getattr(self, f"conv_norm_{i}") for i in range(self.num_convs + 1)],
            self.project,
            combine=self.combine,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class SCSE(Module):
    """Concurrent spatial and channel squeeze-and-excitation, `flax_attn.vision.scse`.

    Parameters `reduce`, `expand`, `project`. Sows `gate` `[*B, H, W, C]`, both gates combined.

    Example:
      >>> nnx.SCSE(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 2,
        hidden_features: int | None = None,
        combine: Combine = "max",
        use_bias: bool = True,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features("SCSE", in_features, reduction, hidden_features)
        self.reduce = layers.linear(in_features, hidden)
        self.expand = layers.linear(hidden, in_features)
        self.project = layers.linear(in_features, 1, dot_general=dot_of_one)
        self.combine = combine
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels and the places of an image `[*B, H, W, C]`."""
        self._check(x)
        y, gate = scse_and_gate(
            x,
            self.reduce,
            self.expand,
            self.project,
            self.combine,
            self.activation_fn,
            self.gate_fn,
        )
        return self._sown(y, gate=gate)


class PolarizedAttention(Module):
    """Polarized self-attention, `flax_attn.vision.polarized_attention`.

    Parameters `channel_query`, `channel_value`, `channel_expand`, `spatial_query`, `spatial_value`,
    and `channel_norm` if there is one. Sows `gate` `[*B, H, W, C]`.

    Args:
      reduction: R = C / reduction, a whole number.
      norm: Makes the normalisation of the channels before their gate, for example
        `functools.partial(nnx.LayerNorm, epsilon=1e-5)`; None for none.

    Example:
      >>> nnx.PolarizedAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        layout: Layout = "parallel",
        reduction: int = 2,
        hidden_features: int | None = None,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = polarized_attention_features(in_features, reduction, hidden_features)
        self.channel_query = layers.linear(in_features, 1)
        self.channel_value = layers.linear(in_features, hidden)
        self.channel_expand = layers.linear(hidden, in_features)
        self.channel_norm = layers.norm(norm, in_features)
        self.spatial_query = layers.linear(in_features, hidden)
        self.spatial_value = layers.linear(in_features, hidden)
        self.layout, self.gate_fn = layout, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = polarized_attention_gate(
            x,
            self.channel_query,
            self.channel_value,
            self.channel_expand,
            self.spatial_query,
            self.spatial_value,
            channel_norm=self.channel_norm,
            layout=self.layout,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class SpatialGroupEnhance(Module):
    """Spatial group-wise enhancement, `flax_attn.vision.spatial_group_enhance`.

    Parameters `scale` and `bias` `[groups]`. Sows `gate` `[*B, H, W, C]`.

    Args:
      groups: G, the number of groups of consecutive channels. It divides C.
      scale_init: Initializer of the scale.
      bias_init: Initializer of the bias.

    Example:
      >>> nnx.SpatialGroupEnhance(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        groups: int = 64,
        epsilon: float = 1e-5,
        gate_fn: Activation = jax.nn.sigmoid,
        param_dtype: Dtype = jnp.float32,
        scale_init: Initializer = nnx.initializers.zeros,
        bias_init: Initializer = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        layers = self._layers_for(in_features, rngs, param_dtype=param_dtype)
        group_features("SpatialGroupEnhance", in_features, groups)
        self.scale = layers.param(scale_init, groups)
        self.bias = layers.param(bias_init, groups)
        self.epsilon, self.gate_fn = epsilon, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = spatial_group_enhance_gate(
            x, self.scale[...], self.bias[...], epsilon=self.epsilon, gate_fn=self.gate_fn
        )
        return self._scale(x, gate)


class ShuffleAttention(Module):
    """Shuffle attention, `flax_attn.vision.shuffle_attention`.

    Parameters `channel_scale`, `channel_bias`, `norm_scale`, `norm_bias`, `spatial_scale`,
    `spatial_bias`, `[C / (2 groups)]`. Sows `gate` `[*B, H, W, C]`, of the channels before they are
    shuffled.

    Args:
      groups: G, the number of groups of consecutive channels; 2 G divides C.
      scale_init: Initializer of the scales of both gates; that of the normalisation starts at 1.
      bias_init: Initializer of the biases of both gates; that of the normalisation starts at 0.

    Example:
      >>> nnx.ShuffleAttention(64, groups=8, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        groups: int = 64,
        epsilon: float = 1e-5,
        gate_fn: Activation = jax.nn.sigmoid,
        param_dtype: Dtype = jnp.float32,
        scale_init: Initializer = nnx.initializers.zeros,
        bias_init: Initializer = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        layers = self._layers_for(in_features, rngs, param_dtype=param_dtype)
        part = group_features("ShuffleAttention", in_features, groups, parts=2)
        self.channel_scale = layers.param(scale_init, part)
        self.channel_bias = layers.param(bias_init, part)
        self.norm_scale = layers.param(nnx.initializers.ones, part)
        self.norm_bias = layers.param(nnx.initializers.zeros, part)
        self.spatial_scale = layers.param(scale_init, part)
        self.spatial_bias = layers.param(bias_init, part)
        self.epsilon, self.gate_fn = epsilon, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]` and shuffle its channels."""
        self._check(x)
        gate = shuffle_attention_gate(
            x,
            self.channel_scale[...],
            self.channel_bias[...],
            self.norm_scale[...],
            self.norm_bias[...],
            self.spatial_scale[...],
            self.spatial_bias[...],
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return channel_shuffle(self._scale(x, gate))


class EfficientMultiScaleAttention(Module):
    """Efficient multi-scale attention, `flax_attn.vision.efficient_multi_scale_attention`.

    Parameters `pointwise`, `norm_scale`, `norm_bias`, `conv`, shared by all groups. Sows `gate`
    `[*B, H, W, C]`.

    Args:
      groups: Number of groups of consecutive channels. It divides C.
      use_bias: If True, both convolutions have biases.

    Example:
      >>> nnx.EfficientMultiScaleAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        groups: int = 32,
        kernel_size: int = 3,
        use_bias: bool = True,
        epsilon: float = 1e-5,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        part = group_features("EfficientMultiScaleAttention", in_features, groups)
        size = check_odd("EfficientMultiScaleAttention", kernel_size)
        self.pointwise = layers.linear(part, part)
        self.norm_scale = layers.constant(1, part)
        self.norm_bias = layers.constant(0, part)
        self.conv = layers.conv(part, part, size)
        self.epsilon, self.gate_fn = epsilon, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = efficient_multi_scale_attention_gate(
            x,
            self.pointwise,
            self.norm_scale[...],
            self.norm_bias[...],
            self.conv,
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
