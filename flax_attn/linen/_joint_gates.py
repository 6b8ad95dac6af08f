"""Gates of channels and places together, as Linen modules."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import linen as nn

from flax_attn._checks import Activation, reduced_features
from flax_attn._cpu.one_channel import dot_of_one
from flax_attn.linen._channel_gates import ChannelAttention
from flax_attn.linen._module import LayerModule, NormModule
from flax_attn.linen._norm import BatchNorm
from flax_attn.linen._spatial_gates import SpatialAttention
from flax_attn.vision import bam_gate, polarized_attention_gate
from flax_attn.vision._bam import bam_features
from flax_attn.vision._polarized_attention import Layout, polarized_attention_features
from flax_attn.vision._scse import Combine, scse_and_gate
from flax_attn.vision._spatial_attention import Pooling


class CBAM(LayerModule, kw_only=True):
    """CBAM; see `flax_attn.nnx.CBAM`.

    Example:
      >>> linen.CBAM().init_with_output(key, jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
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
        """Scale the channels, then the places of an image `[*B, H, W, C]`."""
        x = ChannelAttention(
            reduction=self.reduction,
            hidden_features=self.hidden_features,
            use_bias=self.use_bias,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
            name="channel",
            **self._layer_options,
        )(x)
        return SpatialAttention(
            kernel_size=self.kernel_size,
            norm=self.norm,
            order=self.order,
            gate_fn=self.gate_fn,
            name="spatial",
            **self._layer_options,
        )(x)


class BAM(NormModule, kw_only=True):
    """The bottleneck attention module; see `flax_attn.nnx.BAM`.

    Example:
      >>> bam = linen.BAM(use_running_average=True)
      >>> bam.init_with_output(key, jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
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
        """Scale an image `[*B, H, W, C]`."""
        x, features = self._image(x)
        hidden = bam_features(
            features,
            self.reduction,
            self.hidden_features,
            self.kernel_size,
            self.dilation,
            self.num_convs,
        )
        norm = self._norm(use_running_average)
        convs: list[nn.Module] = [self._dense(hidden, "conv_0", use_bias=self.use_bias)]
        for i in range(1, self.num_convs + 1):
            conv = self._conv(
                hidden,
                self.kernel_size,
                f"conv_{i}",
                use_bias=self.use_bias,
                dilation=self.dilation,
            )
            convs.append(conv)
        gate = bam_gate(
            x,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            norm(name="reduce_norm"),
            self._dense(features, "expand", use_bias=self.use_bias),
            convs,
            [norm(name=f"conv_norm_{i}") for i in range(self.num_convs + 1)],
            self._dense(1, "project", use_bias=self.use_bias),
            combine=self.combine,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class SCSE(LayerModule, kw_only=True):
    """Concurrent spatial and channel squeeze-and-excitation; see `flax_attn.nnx.SCSE`.

    Example:
      >>> linen.SCSE().init_with_output(key, jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 2
    hidden_features: int | None = None
    combine: Combine = "max"
    use_bias: bool = True
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels and the places of an image `[*B, H, W, C]`."""
        x, features = self._image(x)
        hidden = reduced_features("SCSE", features, self.reduction, self.hidden_features)
        y, gate = scse_and_gate(
            x,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            self._dense(features, "expand", use_bias=self.use_bias),
            self._dense(1, "project", use_bias=self.use_bias, dot_general=dot_of_one),
            self.combine,
            self.activation_fn,
            self.gate_fn,
        )
        return self._sown(y, gate=gate)


class PolarizedAttention(LayerModule, kw_only=True):
    """Polarized self-attention; see `flax_attn.nnx.PolarizedAttention`.

    Example:
      >>> linen.PolarizedAttention().init_with_output(key, jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    layout: Layout = "parallel"
    reduction: int = 2
    hidden_features: int | None = None
    use_bias: bool = False
    norm: Any = None
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x, features = self._image(x)
        hidden = polarized_attention_features(features, self.reduction, self.hidden_features)
        gate = polarized_attention_gate(
            x,
            self._dense(1, "channel_query", use_bias=self.use_bias),
            self._dense(hidden, "channel_value", use_bias=self.use_bias),
            self._dense(features, "channel_expand", use_bias=self.use_bias),
            self._dense(hidden, "spatial_query", use_bias=self.use_bias),
            self._dense(hidden, "spatial_value", use_bias=self.use_bias),
            channel_norm=None if self.norm is None else self.norm(name="channel_norm"),
            layout=self.layout,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
