"""Attention by large kernels, as Linen modules."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, check_odd
from flax_attn.linen._module import LayerModule, NormModule
from flax_attn.linen._norm import DetectorBatchNorm
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


class LargeKernelAttention(LayerModule, kw_only=True):
    """Large kernel attention; see `flax_attn.nnx.LargeKernelAttention`.

    Example:
      >>> linen.LargeKernelAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_size: int = 5
    dilated_kernel_size: int = 7
    dilation: int = 3
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        check_large_kernel_attention(self.kernel_size, self.dilated_kernel_size, self.dilation)
        local_conv = self._conv(features, self.kernel_size, "local_conv", groups=features)
        dilated_conv = self._conv(
            features,
            self.dilated_kernel_size,
            "dilated_conv",
            dilation=self.dilation,
            groups=features,
        )
        project = self._dense(features, "project")
        return self._scale(x, large_kernel_attention_gate(x, local_conv, dilated_conv, project))


class SeparableLargeKernelAttention(LayerModule, kw_only=True):
    """Large kernel attention by strips; see `flax_attn.nnx.SeparableLargeKernelAttention`.

    Example:
      >>> linen.SeparableLargeKernelAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_size: int = 23
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        local, dilated, dilation = separable_kernel_sizes(self.kernel_size)
        strip = functools.partial(self._conv, features, groups=features)
        gate = separable_large_kernel_attention_gate(
            x,
            strip((1, local), "local_row"),
            strip((local, 1), "local_column"),
            strip((1, dilated), "dilated_row", dilation=dilation),
            strip((dilated, 1), "dilated_column", dilation=dilation),
            self._dense(features, "project"),
        )
        return self._scale(x, gate)


class LargeSelectiveKernel(LayerModule, kw_only=True):
    """Large selective kernels; see `flax_attn.nnx.LargeSelectiveKernel`.

    Example:
      >>> linen.LargeSelectiveKernel().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_sizes: Sequence[int] = (5, 7)
    dilations: Sequence[int] = (1, 3)
    reduction: int = 2
    hidden_features: int | None = None
    select_kernel_size: int = 7
    use_bias: bool = True
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden, kernels = large_selective_kernel_sizes(
            features,
            self.reduction,
            self.hidden_features,
            self.kernel_sizes,
            self.dilations,
            self.select_kernel_size,
        )
        convs, reduces = [], []
        for i, (size, dilation) in enumerate(kernels):
            conv = self._conv(features, size, f"conv_{i}", dilation=dilation, groups=features)
            convs.append(conv)
            reduces.append(self._dense(hidden, f"reduce_{i}"))
        gate = large_selective_kernel_gate(
            x,
            convs,
            reduces,
            self._conv(len(kernels), self.select_kernel_size, "select"),
            self._dense(features, "project"),
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class ContextAnchorAttention(NormModule, kw_only=True):
    """Context anchor attention; see `flax_attn.nnx.ContextAnchorAttention`.

    Example:
      >>> linen.ContextAnchorAttention(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_size: int = 11
    pool_size: int = 7
    use_bias: bool = True
    norm: Any = DetectorBatchNorm
    activation_fn: Activation = jax.nn.silu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        size = check_odd("ContextAnchorAttention", self.kernel_size)
        norm = self.norm and self._norm(use_running_average)
        project_bias = self.use_bias and norm is None
        gate = context_anchor_attention_gate(
            x,
            self._dense(features, "project_in", use_bias=project_bias),
            norm and norm(name="norm_in"),
            self._conv(features, (1, size), "row", groups=features),
            self._conv(features, (size, 1), "column", groups=features),
            self._dense(features, "project_out", use_bias=project_bias),
            norm and norm(name="norm_out"),
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class FocalModulation(LayerModule, kw_only=True):
    """Focal modulation; see `flax_attn.nnx.FocalModulation`.

    Example:
      >>> linen.FocalModulation().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    num_levels: int = 2
    kernel_size: int = 3
    kernel_growth: int = 2
    normalize_modulator: bool = False
    norm: Any = None
    use_bias: bool = True
    activation_fn: Activation = exact_gelu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        sizes = kernel_sizes(self.num_levels, self.kernel_size, self.kernel_growth)
        gate = self._dense(self.num_levels + 1, "gate")

        def sown_gate(x: jax.Array) -> jax.Array:
            gates = gate(x)
            return self._sown(gates, level_gates=gates)

        return focal_modulation(
            x,
            self._dense(features, "query"),
            self._dense(features, "context"),
            sown_gate,
            [
                self._conv(features, size, f"conv_{i}", use_bias=False, groups=features)
                for i, size in enumerate(sizes)
            ],
            self._dense(features, "modulate"),
            self._dense(features, "out", use_bias=True),
            norm=None if self.norm is None else self.norm(name="norm"),
            normalize_modulator=self.normalize_modulator,
            activation_fn=self.activation_fn,
        )
