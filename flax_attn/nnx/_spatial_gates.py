"""Gates of places, as NNX modules."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, Map, check_features, check_odd, reduced_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm, SlowBatchNorm
from flax_attn.vision import (
    attention_gate_gate,
    coordinate_attention_gate,
    efficient_local_attention_gate,
    spatial_attention_gate,
)
from flax_attn.vision._attention_gate import attention_gate_features
from flax_attn.vision._efficient_local_attention import check_efficient_local_attention
from flax_attn.vision._simam import simam_and_gate
from flax_attn.vision._spatial_attention import Pooling
from flax_attn.vision._triplet_attention import triplet_attention_and_gate


class SpatialAttention(Module):
    """Spatial attention, `flax_attn.vision.spatial_attention`.

    Parameters `conv`, and `norm` if there is one. Sows `gate` `[*B, H, W, 1]`.

    Args:
      kernel_size: Size of the kernel, odd; 7 in the paper.
      use_bias: If True, the convolution has a bias.
      norm: Makes the normalisation after the convolution, for example `nnx.BatchNorm`; None for
        none.

    Example:
      >>> nnx.SpatialAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        kernel_size: int = 3,
        use_bias: bool = False,
        norm: Callable[..., Any] | None = None,
        order: Sequence[Pooling] = ("mean", "max"),
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        size = check_odd("SpatialAttention", kernel_size)
        self.conv = layers.conv(2, 1, size)
        self.norm = layers.norm(norm, 1)
        self.order = tuple(order)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        self._check(x)
        gate = spatial_attention_gate(
            x, self.conv, norm=self.norm, order=self.order, gate_fn=self.gate_fn
        )
        return self._scale(x, gate)


class AttentionGate(Module):
    """The attention gate of Attention U-Net, `flax_attn.vision.attention_gate`.

    Parameters `theta`, `phi`, `psi`, and with a norm `theta_norm`, `phi_norm`, `psi_norm`. Sows
    `gate` `[*B, H, W, 1]`.

    Args:
      gating_features: G, the channels of the gating signal; C by default.
      strides: Strides and kernel size of θ. The versions with a norm have 1.
      use_bias: If True, φ and ψ have biases. θ has none, because the bias of φ is added to it.
      norm: Makes a normalisation after each layer, for example `nnx.BatchNorm`; None for none.

    Example:
      >>> x, gating = jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 24))
      >>> nnx.AttentionGate(16, gating_features=24, rngs=rngs)(x, gating).shape
      (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        gating_features: int | None = None,
        reduction: int = 2,
        hidden_features: int | None = None,
        strides: int = 2,
        use_bias: bool = True,
        norm: Callable[..., Any] | None = None,
        activation_fn: Activation = jax.nn.relu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = attention_gate_features(in_features, reduction, hidden_features, strides)
        self.gating_features = in_features if gating_features is None else gating_features
        self.theta = layers.conv(
            in_features, hidden, strides, use_bias=False, strides=strides, padding=0
        )
        self.phi = layers.linear(self.gating_features, hidden)
        self.psi = layers.linear(hidden, 1)
        self.theta_norm = layers.norm(norm, hidden)
        self.phi_norm = layers.norm(norm, hidden)
        self.psi_norm = layers.norm(norm, 1)
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array, gating: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]` by a signal `[*B, h, w, G]`."""
        self._check(x)
        check_features("AttentionGate", gating, self.gating_features, "gating")
        gate = attention_gate_gate(
            x,
            gating,
            _normalised(self.theta, self.theta_norm),
            _normalised(self.phi, self.phi_norm),
            _normalised(self.psi, self.psi_norm),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


def _normalised(layer: Map, norm: Map | None) -> Map:
    return layer if norm is None else lambda x: norm(layer(x))


class CoordinateAttention(Module):
    """Coordinate attention, `flax_attn.vision.coordinate_attention`.

    Parameters `reduce`, `norm`, `expand_height`, `expand_width`. Sows `gate`, the pair
    `[*B, H, 1, C]`, `[*B, 1, W, C]`.

    Args:
      reduction: R = max(min_features, C // reduction).

    Example:
      >>> nnx.CoordinateAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 32,
        min_features: int = 8,
        hidden_features: int | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.hard_swish,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features(
            "CoordinateAttention", in_features, reduction, hidden_features, min_features
        )
        self.reduce = layers.linear(in_features, hidden)
        self.norm = layers.norm(norm, hidden)
        self.expand_height = layers.linear(hidden, in_features)
        self.expand_width = layers.linear(hidden, in_features)
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        self._check(x)
        gates = coordinate_attention_gate(
            x,
            self.reduce,
            self.norm,
            self.expand_height,
            self.expand_width,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, *gates)


class EfficientLocalAttention(Module):
    """Efficient local attention, `flax_attn.vision.efficient_local_attention`.

    The defaults are ELA-B. Parameters `conv`, `norm`. Sows `gate`, the pair `[*B, H, 1, C]`,
    `[*B, 1, W, C]`.

    Args:
      kernel_size: Size of the kernel, odd: 7 in ELA-B and ELA-L, 5 in ELA-T and ELA-S.
      group_size: Channels of a group of the convolution: 1 (depthwise) in ELA-B and ELA-T, 8 in
        ELA-S and ELA-L. It divides C.
      num_groups: Groups of the normalisation: 32 in ELA-T, otherwise 16. It divides C.
      use_bias: If True, the convolution has a bias.

    Example:
      >>> nnx.EfficientLocalAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 7,
        group_size: int = 1,
        num_groups: int = 16,
        use_bias: bool = False,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        check_efficient_local_attention(in_features, kernel_size, group_size, num_groups)
        self.conv = layers.conv(
            in_features, in_features, (kernel_size,), groups=in_features // group_size
        )
        self.norm = nnx.GroupNorm(
            in_features,
            num_groups,
            epsilon=1e-5,
            reduction_axes=(-2, -1),
            use_fast_variance=False,
            dtype=layer_options.get("dtype"),
            param_dtype=self.conv.param_dtype,
            rngs=rngs,
        )
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        self._check(x)

        def norm(strips: jax.Array) -> jax.Array:  # Flax's takes one leading axis for the batch
            flat = strips.reshape(-1, *strips.shape[-2:])
            return self.norm(flat).reshape(strips.shape)

        gates = efficient_local_attention_gate(x, self.conv, norm, gate_fn=self.gate_fn)
        return self._scale(x, *gates)


class TripletAttention(Module):
    """Triplet attention, `flax_attn.vision.triplet_attention`.

    Parameters `conv_cw`, `norm_cw`, `conv_hc`, `norm_hc`, `conv_hw`, `norm_hw`. Sows `gate`
    `[*B, H, W, C]`, the mean of the gates of all planes.

    Args:
      use_spatial: If True, the plane (H, W) has a gate, too.
      use_bias: If True, the convolutions have biases.
      norm: As in all modules that normalise; by default with the momentum of the released code: an
        update has weight 0.01.

    Example:
      >>> nnx.TripletAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        kernel_size: int = 7,
        use_spatial: bool = True,
        use_bias: bool = False,
        norm: Callable[..., Any] = SlowBatchNorm,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        size = check_odd("TripletAttention", kernel_size)
        self.conv_cw = layers.conv(2, 1, size)
        self.norm_cw = layers.norm(norm, 1)
        self.conv_hc = layers.conv(2, 1, size)
        self.norm_hc = layers.norm(norm, 1)
        self.conv_hw = self.norm_hw = nnx.data(None)
        if use_spatial:
            self.conv_hw = layers.conv(2, 1, size)
            self.norm_hw = layers.norm(norm, 1)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        y, gate = triplet_attention_and_gate(
            x,
            conv_cw=self.conv_cw,
            norm_cw=self.norm_cw,
            conv_hc=self.conv_hc,
            norm_hc=self.norm_hc,
            conv_hw=self.conv_hw,
            norm_hw=self.norm_hw,
            gate_fn=self.gate_fn,
        )
        return self._sown(y, gate=gate)


class SimAM(Module):
    """SimAM, `flax_attn.vision.simam`.

    No parameters. Sows `gate` `[*B, H, W, C]`.

    Example:
      >>> nnx.SimAM(64)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        e_lambda: float = 1e-4,
        rngs: nnx.Rngs | None = None,
    ):
        self._set_in_features(in_features)
        self.e_lambda = e_lambda

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        y, gate = simam_and_gate(x, self.e_lambda)
        return self._sown(y, gate=gate)
