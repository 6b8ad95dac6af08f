"""Attention by large kernels, as NNX modules."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation, check_odd
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import DetectorBatchNorm
from flax_attn.vision import (
    context_anchor_attention_gate,
    focal_modulation,
    large_kernel_attention_gate,
    large_selective_kernel_gate,
    separable_kernel_sizes,
    separable_large_kernel_attention_gate,
)
from flax_attn.vision._focal_modulation import exact_gelu, kernel_sizes
from flax_attn.vision._large_kernel_attention import check_large_kernel_attention
from flax_attn.vision._large_selective_kernel import large_selective_kernel_sizes


class LargeKernelAttention(Module):
    """Large kernel attention, `flax_attn.vision.large_kernel_attention`.

    Parameters `local_conv`, `dilated_conv`, `project`. Sows `gate` `[*B, H, W, C]`.

    Args:
      kernel_size: Size of the local kernel, odd.
      dilated_kernel_size: Size of the dilated kernel, odd.

    Example:
      >>> nnx.LargeKernelAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 5,
        dilated_kernel_size: int = 7,
        dilation: int = 3,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        check_large_kernel_attention(kernel_size, dilated_kernel_size, dilation)
        features = in_features
        self.local_conv = layers.conv(features, features, kernel_size, groups=features)
        self.dilated_conv = layers.conv(
            features, features, dilated_kernel_size, dilation=dilation, groups=features
        )
        self.project = layers.linear(features, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = large_kernel_attention_gate(x, self.local_conv, self.dilated_conv, self.project)
        return self._scale(x, gate)


class SeparableLargeKernelAttention(Module):
    """Large kernel attention by strips, `flax_attn.vision.separable_large_kernel_attention`.

    Parameters `local_row`, `local_column`, `dilated_row`, `dilated_column`, `project`. Sows `gate`
    `[*B, H, W, C]`.

    Args:
      kernel_size: Size of the kernel that the strips replace: 7, 11, 23, 35, 41 or 53.

    Example:
      >>> nnx.SeparableLargeKernelAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 23,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        local, dilated, dilation = separable_kernel_sizes(kernel_size)
        strip = functools.partial(layers.conv, in_features, in_features, groups=in_features)
        self.local_row = strip((1, local))
        self.local_column = strip((local, 1))
        self.dilated_row = strip((1, dilated), dilation=dilation)
        self.dilated_column = strip((dilated, 1), dilation=dilation)
        self.project = layers.linear(in_features, in_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = separable_large_kernel_attention_gate(
            x,
            self.local_row,
            self.local_column,
            self.dilated_row,
            self.dilated_column,
            self.project,
        )
        return self._scale(x, gate)


class LargeSelectiveKernel(Module):
    """Large selective kernels, `flax_attn.vision.large_selective_kernel`.

    Parameters `conv_0 ...`, `reduce_0 ...`, `select`, `project`. Sows `gate` `[*B, H, W, C]`.

    Args:
      kernel_sizes: Size of each of the P kernels, odd.
      dilations: Dilation of each kernel.
      select_kernel_size: Size of the kernel of `select`, odd.

    Example:
      >>> nnx.LargeSelectiveKernel(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_sizes: Sequence[int] = (5, 7),
        dilations: Sequence[int] = (1, 3),
        reduction: int = 2,
        hidden_features: int | None = None,
        select_kernel_size: int = 7,
        use_bias: bool = True,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden, kernels = large_selective_kernel_sizes(
            in_features, reduction, hidden_features, kernel_sizes, dilations, select_kernel_size
        )
        for i, (size, dilation) in enumerate(kernels):
            conv = layers.conv(
                in_features, in_features, size, dilation=dilation, groups=in_features
            )
            setattr(self, f"conv_{i}", conv)
            setattr(self, f"reduce_{i}", layers.linear(in_features, hidden))
        self.select = layers.conv(2, len(kernels), select_kernel_size)
        self.project = layers.linear(hidden, in_features)
        self.num_kernels = len(kernels)
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = large_selective_kernel_gate(
            x,
            [getattr(self, f"conv_{i}") for i in range(self.num_kernels)],
            [getattr(self, f"reduce_{i}") for i in range(self.num_kernels)],
            self.select,
            self.project,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class ContextAnchorAttention(Module):
    """Context anchor attention, `flax_attn.vision.context_anchor_attention`.

    Parameters `project_in`, `norm_in`, `row`, `column`, `project_out`, `norm_out`. Sows `gate`
    `[*B, H, W, C]`.

    Args:
      kernel_size: Length of the strips, odd; in the paper's networks it grows with the depth.
      use_bias: If True, the strips have biases, and without a norm the projections, too.
      norm: As in all modules that normalise; by default with the momentum 0.97 (of Flax) and the
        ε = 1e-3 of the released code. None for none:
        `norm=None, activation_fn=lambda u: u` is the form of the released networks.

    Example:
      >>> nnx.ContextAnchorAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 11,
        pool_size: int = 7,
        use_bias: bool = True,
        norm: Callable[..., Any] | None = DetectorBatchNorm,
        activation_fn: Activation = jax.nn.silu,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        size = check_odd("ContextAnchorAttention", kernel_size)
        check_odd("ContextAnchorAttention", pool_size, "pool_size")
        features, project_bias = in_features, use_bias and norm is None
        self.project_in = layers.linear(features, features, use_bias=project_bias)
        self.norm_in = layers.norm(norm, features)
        self.row = layers.conv(features, features, (1, size), groups=features)
        self.column = layers.conv(features, features, (size, 1), groups=features)
        self.project_out = layers.linear(features, features, use_bias=project_bias)
        self.norm_out = layers.norm(norm, features)
        self.pool_size = pool_size
        self.activation_fn, self.gate_fn = activation_fn, gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        self._check(x)
        gate = context_anchor_attention_gate(
            x,
            self.project_in,
            self.norm_in,
            self.row,
            self.column,
            self.project_out,
            self.norm_out,
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class FocalModulation(Module):
    """Focal modulation, `flax_attn.vision.focal_modulation`.

    Parameters `query`, `context`, `gate`, `conv_0 ...`, `modulate`, `out`, and `norm` if there is
    one. Sows `level_gates` `[*B, H, W, L + 1]`, the weight of each level at each place.

    Args:
      num_levels: L.
      kernel_size: Size of the first depthwise kernel, odd.
      kernel_growth: Difference of the sizes of consecutive kernels, even.
      norm: Makes the normalisation before `out`, such as `nnx.LayerNorm`; None for none.
      use_bias: If True, the layers have biases. The convolutions never have, `out` always has.

    Example:
      >>> nnx.FocalModulation(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_levels: int = 2,
        kernel_size: int = 3,
        kernel_growth: int = 2,
        normalize_modulator: bool = False,
        norm: Callable[..., Any] | None = None,
        use_bias: bool = True,
        activation_fn: Activation = exact_gelu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        features, sizes = in_features, kernel_sizes(num_levels, kernel_size, kernel_growth)
        self.query = layers.linear(features, features)
        self.context = layers.linear(features, features)
        self.gate = layers.linear(features, num_levels + 1)
        for i, size in enumerate(sizes):
            conv = layers.conv(features, features, size, use_bias=False, groups=features)
            setattr(self, f"conv_{i}", conv)
        self.modulate = layers.linear(features, features)
        self.out = layers.linear(features, features, use_bias=True)
        self.norm = layers.norm(norm, features)
        self.num_levels = num_levels
        self.normalize_modulator = normalize_modulator
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Modulate the places of an image `[*B, H, W, C]`."""
        self._check(x)

        def sown_gate(x: jax.Array) -> jax.Array:
            gates = self.gate(x)
            return self._sown(gates, level_gates=gates)

        return focal_modulation(
            x,
            self.query,
            self.context,
            sown_gate,
            [getattr(self, f"conv_{i}") for i in range(self.num_levels)],
            self.modulate,
            self.out,
            norm=self.norm,
            normalize_modulator=self.normalize_modulator,
            activation_fn=self.activation_fn,
        )
