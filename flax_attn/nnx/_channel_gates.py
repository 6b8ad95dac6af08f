"""Gates of channels, as NNX modules."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_attn._checks import Activation, reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm
from flax_attn.vision import (
    channel_attention_gate,
    eca_gate,
    effective_squeeze_excite_gate,
    frequency_channel_attention_gate,
    gated_channel_transform_gate,
    gather_excite_gate,
    squeeze_excite_gate,
)
from flax_attn.vision._eca import as_kernel_size
from flax_attn.vision._gather_excite import Extent, as_extent, gathering_convs, mean_extent


class SqueezeExcite(Module):
    """Squeeze-and-excitation, `flax_attn.vision.squeeze_excite`.

    Parameters `reduce`, `expand`. Sows `gate` `[*B, 1, 1, C]`.

    Args:
      reduction: R = C // reduction; 16 in the paper.
      use_bias: If True, the layers have biases, as in the released models of the paper.

    Example:
      >>> nnx.SqueezeExcite(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        use_bias: bool = False,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features("SqueezeExcite", in_features, reduction, hidden_features)
        self.reduce = layers.linear(in_features, hidden)
        self.expand = layers.linear(hidden, in_features)
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = squeeze_excite_gate(
            x, self.reduce, self.expand, activation_fn=self.activation_fn, gate_fn=self.gate_fn
        )
        return self._scale(x, gate)


class EffectiveSqueezeExcite(Module):
    """Effective squeeze-and-excitation, `flax_attn.vision.effective_squeeze_excite`.

    Parameter `project`. Sows `gate` `[*B, 1, 1, C]`.

    Args:
      use_bias: If True, the layer has a bias.

    Example:
      >>> nnx.EffectiveSqueezeExcite(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        use_bias: bool = True,
        gate_fn: Activation = jax.nn.hard_sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        self.project = layers.linear(in_features, in_features)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        return self._scale(x, effective_squeeze_excite_gate(x, self.project, gate_fn=self.gate_fn))


class ECA(Module):
    """Efficient channel attention, `flax_attn.vision.eca`.

    Parameter `conv`. Sows `gate` `[*B, 1, 1, C]`.

    Args:
      kernel_size: k, odd; `eca_kernel_size(C)` of the paper by default.

    Example:
      >>> nnx.ECA(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int | None = None,
        use_bias: bool = False,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        size = as_kernel_size(in_features, kernel_size)
        self.conv = layers.conv(1, 1, (size,))
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        return self._scale(x, eca_gate(x, self.conv, gate_fn=self.gate_fn))


class ChannelAttention(Module):
    """Channel attention, `flax_attn.vision.channel_attention`.

    Parameters `reduce`, `expand`. Sows `gate` `[*B, 1, 1, C]`.

    Args:
      reduction: R = C // reduction; 16 in the paper.
      use_bias: If True, the layers have biases, as in the released models of the paper.

    Example:
      >>> nnx.ChannelAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        use_bias: bool = False,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features("ChannelAttention", in_features, reduction, hidden_features)
        self.reduce = layers.linear(in_features, hidden)
        self.expand = layers.linear(hidden, in_features)
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = channel_attention_gate(
            x, self.reduce, self.expand, activation_fn=self.activation_fn, gate_fn=self.gate_fn
        )
        return self._scale(x, gate)


class FrequencyChannelAttention(Module):
    """Frequency channel attention, `flax_attn.vision.frequency_channel_attention`.

    Parameters `reduce`, `expand`; the cosines are constants. Sows `gate` `[*B, 1, 1, C]`.

    Example:
      >>> nnx.FrequencyChannelAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 16,
        hidden_features: int | None = None,
        frequencies: int | Sequence[tuple[int, int]] = 16,
        dct_size: int | tuple[int, int] = 7,
        use_bias: bool = False,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features(
            "FrequencyChannelAttention", in_features, reduction, hidden_features
        )
        self.reduce = layers.linear(in_features, hidden)
        self.expand = layers.linear(hidden, in_features)
        self.frequencies = frequencies
        self.dct_size = dct_size
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = frequency_channel_attention_gate(
            x,
            self.reduce,
            self.expand,
            frequencies=self.frequencies,
            dct_size=self.dct_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class GatedChannelTransform(Module):
    """The gated channel transformation, `flax_attn.vision.gated_channel_transform`.

    Parameters `alpha`, `gamma`, `beta` `[C]`, which start at 1, 0 and 0, so that the module starts
    as the identity. Sows `gate` `[*B, 1, 1, C]`, the factor 1 + tanh(e n + β).

    Example:
      >>> nnx.GatedChannelTransform(64)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        epsilon: float = 1e-5,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self._set_in_features(in_features)
        self.alpha = nnx.Param(jnp.ones(in_features, param_dtype))
        self.gamma = nnx.Param(jnp.zeros(in_features, param_dtype))
        self.beta = nnx.Param(jnp.zeros(in_features, param_dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = gated_channel_transform_gate(
            x, self.alpha[...], self.gamma[...], self.beta[...], epsilon=self.epsilon
        )
        return self._scale(x, gate)


class GatherExcite(Module):
    """Gather-excite, `flax_attn.vision.gather_excite`.

    The defaults are GE-θ⁻ over the whole image. GE-θ is `gather="conv"`, and GE-θ⁺ is
    `gather="conv", reduction=16`. Parameters `conv_0 ...`, `norm_0 ...` of `gather="conv"`, and
    `reduce`, `expand` of a reduction. Sows `gate` `[*B, H, W, C]`, or `[*B, 1, 1, C]` of the whole
    image.

    Args:
      extent: e, a power of 2; or the (height, width) of the images, which are gathered whole and
        must have that size; or None for whole images of any size, for the mean only.
      gather: `"mean"`, or `"conv"` for depthwise convolutions.
      reduction: R = C // reduction in the perceptron that excites; None for no perceptron.
      use_bias: If True, the perceptron has biases; the convolutions have none.

    Example:
      >>> nnx.GatherExcite(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        extent: Extent = None,
        gather: Literal["mean", "conv"] = "mean",
        reduction: int | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        convs = gathering_convs(gather, extent)
        for i, shape in enumerate(convs):
            conv = layers.conv(
                in_features, in_features, use_bias=False, groups=in_features, **shape
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"norm_{i}", layers.norm(norm, in_features))
        self.reduce = self.expand = nnx.data(None)
        if reduction is not None:
            hidden = reduced_features("GatherExcite", in_features, reduction, None)
            self.reduce = layers.linear(in_features, hidden)
            self.expand = layers.linear(hidden, in_features)
        self.extent = as_extent(extent)
        self.num_convs = len(convs)
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        extent = mean_extent(x, self.extent)
        gate = gather_excite_gate(
            x,
            [getattr(self, f"conv_{i}") for i in range(self.num_convs)],
            [getattr(self, f"norm_{i}") for i in range(self.num_convs)],
            self.reduce,
            self.expand,
            extent=None if self.num_convs else extent,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
