"""Gates of channels, as Linen modules."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from flax_attn._checks import Activation, reduced_features
from flax_attn.linen._module import LayerModule, Module, NormModule
from flax_attn.linen._norm import BatchNorm
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


class SqueezeExcite(LayerModule, kw_only=True):
    """Squeeze-and-excitation; see `flax_attn.nnx.SqueezeExcite`.

    Example:
      >>> linen.SqueezeExcite().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 4
    hidden_features: int | None = None
    use_bias: bool = False
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features("SqueezeExcite", features, self.reduction, self.hidden_features)
        gate = squeeze_excite_gate(
            x,
            self._dense(hidden, "reduce"),
            self._dense(features, "expand"),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class EffectiveSqueezeExcite(LayerModule, kw_only=True):
    """Effective squeeze-and-excitation; see `flax_attn.nnx.EffectiveSqueezeExcite`.

    Example:
      >>> linen.EffectiveSqueezeExcite().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    use_bias: bool = True
    gate_fn: Activation = jax.nn.hard_sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        project = self._dense(features, "project")
        return self._scale(x, effective_squeeze_excite_gate(x, project, gate_fn=self.gate_fn))


class ECA(LayerModule, kw_only=True):
    """Efficient channel attention; see `flax_attn.nnx.ECA`.

    Example:
      >>> linen.ECA().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_size: int | None = None
    use_bias: bool = False
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        size = as_kernel_size(features, self.kernel_size)
        conv = self._conv(1, (size,), "conv")
        return self._scale(x, eca_gate(x, conv, gate_fn=self.gate_fn))


class ChannelAttention(LayerModule, kw_only=True):
    """Channel attention; see `flax_attn.nnx.ChannelAttention`.

    Example:
      >>> linen.ChannelAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 4
    hidden_features: int | None = None
    use_bias: bool = False
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features(
            "ChannelAttention", features, self.reduction, self.hidden_features
        )
        gate = channel_attention_gate(
            x,
            self._dense(hidden, "reduce"),
            self._dense(features, "expand"),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class FrequencyChannelAttention(LayerModule, kw_only=True):
    """Frequency channel attention; see `flax_attn.nnx.FrequencyChannelAttention`.

    Example:
      >>> linen.FrequencyChannelAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 16
    hidden_features: int | None = None
    frequencies: int | Sequence[tuple[int, int]] = 16
    dct_size: int | tuple[int, int] = 7
    use_bias: bool = False
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features(
            "FrequencyChannelAttention", features, self.reduction, self.hidden_features
        )
        gate = frequency_channel_attention_gate(
            x,
            self._dense(hidden, "reduce"),
            self._dense(features, "expand"),
            frequencies=self.frequencies,
            dct_size=self.dct_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class GatedChannelTransform(Module, kw_only=True):
    """The gated channel transformation; see `flax_attn.nnx.GatedChannelTransform`.

    Example:
      >>> linen.GatedChannelTransform().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    epsilon: float = 1e-5
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        gate = gated_channel_transform_gate(
            x,
            self.param("alpha", nn.initializers.ones, (features,), self.param_dtype),
            self.param("gamma", nn.initializers.zeros, (features,), self.param_dtype),
            self.param("beta", nn.initializers.zeros, (features,), self.param_dtype),
            epsilon=self.epsilon,
        )
        return self._scale(x, gate)


class GatherExcite(NormModule, kw_only=True):
    """Gather-excite; see `flax_attn.nnx.GatherExcite`.

    Example:
      >>> linen.GatherExcite().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    extent: Extent = None
    gather: Literal["mean", "conv"] = "mean"
    reduction: int | None = None
    use_bias: bool = True
    norm: Any = BatchNorm
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        convs = gathering_convs(self.gather, self.extent)
        extent = mean_extent(x, as_extent(self.extent))
        layers: dict[str, Any] = {}
        if convs:
            norm = self._norm(use_running_average)
            layers["convs"] = [
                self._conv(features, name=f"conv_{i}", use_bias=False, groups=features, **shape)
                for i, shape in enumerate(convs)
            ]
            layers["norms"] = [norm(name=f"norm_{i}") for i in range(len(convs))]
        if self.reduction is not None:
            hidden = reduced_features("GatherExcite", features, self.reduction, None)
            layers["reduce"] = self._dense(hidden, "reduce")
            layers["expand"] = self._dense(features, "expand")
        gate = gather_excite_gate(
            x,
            **layers,
            extent=None if convs else extent,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
