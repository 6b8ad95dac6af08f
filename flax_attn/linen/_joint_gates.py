"""Gates of channels and places together, as Linen modules."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_odd, group_features, reduced_features
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn.linen._channel_gates import ChannelAttention
from flax_attn.linen._module import LayerModule, Module, NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.linen._spatial_gates import SpatialAttention
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


class CBAM(LayerModule, kw_only=True):
    """CBAM; see `flax_attn.nnx.CBAM`.

    Example:
      >>> linen.CBAM().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 4
    hidden_features: int | None = None
    kernel_size: int = 3
    use_bias: bool = False
    norm: Any = None
    order: Sequence[Pooling] = ("mean", "max")
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ChannelAttention(
            reduction=self.reduction,
            hidden_features=self.hidden_features,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
            name="channel",
            **self._options(),
        )(x)
        return SpatialAttention(
            kernel_size=self.kernel_size,
            norm=self.norm,
            order=self.order,
            gate_fn=self.gate_fn,
            name="spatial",
            **self._options(use_bias=False),
        )(x)


class BAM(NormModule, kw_only=True):
    """The bottleneck attention module; see `flax_attn.nnx.BAM`.

    Example:
      >>> linen.BAM(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 16
    hidden_features: int | None = None
    kernel_size: int = 3
    dilation: int = 4
    num_convs: int = 2
    combine: Literal["add", "multiply"] = "add"
    use_bias: bool = True
    norm: Any = BatchNorm
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        check_bam(self.kernel_size, self.dilation, self.num_convs)
        hidden = reduced_features("BAM", features, self.reduction, self.hidden_features)
        norm = self._norm(use_running_average)
        convs: list[nn.Module] = [self._dense(hidden, "conv_0")]
        for i in range(1, self.num_convs + 1):
            conv = self._conv(hidden, self.kernel_size, f"conv_{i}", dilation=self.dilation)
            convs.append(conv)
        gate = bam_gate(
            x,
            self._dense(hidden, "reduce"),
            norm(name="reduce_norm"),
            self._dense(features, "expand"),
            convs,
            [norm(name=f"conv_norm_{i}") for i in range(self.num_convs + 1)],
            self._dense(1, "project"),
            combine=self.combine,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class SCSE(LayerModule, kw_only=True):
    """Concurrent spatial and channel squeeze-and-excitation; see `flax_attn.nnx.SCSE`.

    Example:
      >>> linen.SCSE().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 2
    hidden_features: int | None = None
    combine: Combine = "max"
    use_bias: bool = True
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features("SCSE", features, self.reduction, self.hidden_features)
        y, gate = scse_and_gate(
            x,
            self._dense(hidden, "reduce"),
            self._dense(features, "expand"),
            self._dense(1, "project", dot_general=dot_of_one),
            self.combine,
            self.activation_fn,
            self.gate_fn,
        )
        return self._sown(y, gate=gate)


class PolarizedAttention(LayerModule, kw_only=True):
    """Polarized self-attention; see `flax_attn.nnx.PolarizedAttention`.

    Example:
      >>> linen.PolarizedAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    layout: Layout = "parallel"
    reduction: int = 2
    hidden_features: int | None = None
    use_bias: bool = False
    norm: Any = None
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden = polarized_attention_features(features, self.reduction, self.hidden_features)
        gate = polarized_attention_gate(
            x,
            self._dense(1, "channel_query"),
            self._dense(hidden, "channel_value"),
            self._dense(features, "channel_expand"),
            self._dense(hidden, "spatial_query"),
            self._dense(hidden, "spatial_value"),
            channel_norm=None if self.norm is None else self.norm(name="channel_norm"),
            layout=self.layout,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class SpatialGroupEnhance(Module, kw_only=True):
    """Spatial group-wise enhancement; see `flax_attn.nnx.SpatialGroupEnhance`.

    Example:
      >>> linen.SpatialGroupEnhance().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    groups: int = 64
    epsilon: float = 1e-5
    gate_fn: Activation = jax.nn.sigmoid
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        group_features("SpatialGroupEnhance", features, self.groups)
        gate = spatial_group_enhance_gate(
            x,
            self.param("scale", self.scale_init, (self.groups,), self.param_dtype),
            self.param("bias", self.bias_init, (self.groups,), self.param_dtype),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class ShuffleAttention(Module, kw_only=True):
    """Shuffle attention; see `flax_attn.nnx.ShuffleAttention`.

    Example:
      >>> linen.ShuffleAttention(groups=8).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    groups: int = 64
    epsilon: float = 1e-5
    gate_fn: Activation = jax.nn.sigmoid
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        part = group_features("ShuffleAttention", features, self.groups, parts=2)

        def vector(name: str, initializer: Initializer) -> jax.Array:
            return self.param(name, initializer, (part,), self.param_dtype)

        gate = shuffle_attention_gate(
            x,
            vector("channel_scale", self.scale_init),
            vector("channel_bias", self.bias_init),
            vector("norm_scale", nn.initializers.ones),
            vector("norm_bias", nn.initializers.zeros),
            vector("spatial_scale", self.scale_init),
            vector("spatial_bias", self.bias_init),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return channel_shuffle(self._scale(x, gate))


class EfficientMultiScaleAttention(LayerModule, kw_only=True):
    """Efficient multi-scale attention; see `flax_attn.nnx.EfficientMultiScaleAttention`.

    Example:
      >>> linen.EfficientMultiScaleAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    groups: int = 32
    kernel_size: int = 3
    use_bias: bool = True
    epsilon: float = 1e-5
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        part = group_features("EfficientMultiScaleAttention", features, self.groups)
        size = check_odd("EfficientMultiScaleAttention", self.kernel_size)
        gate = efficient_multi_scale_attention_gate(
            x,
            self._dense(part, "pointwise"),
            self.param("norm_scale", nn.initializers.ones, (part,), self.param_dtype),
            self.param("norm_bias", nn.initializers.zeros, (part,), self.param_dtype),
            self._conv(part, size, "conv"),
            epsilon=self.epsilon,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
