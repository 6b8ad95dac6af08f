"""Gates of places, as Linen modules."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, Map, check_odd, reduced_features
from flax_attn.linen._module import LayerModule, Module, NormModule
from flax_attn.linen._norm import BatchNorm, SlowBatchNorm, default_norm
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


class SpatialAttention(LayerModule, kw_only=True):
    """Spatial attention; see `flax_attn.nnx.SpatialAttention`.

    Example:
      >>> linen.SpatialAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_size: int = 3
    use_bias: bool = False
    norm: Any = None
    order: Sequence[Pooling] = ("mean", "max")
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = check_odd("SpatialAttention", self.kernel_size)
        gate = spatial_attention_gate(
            x,
            self._conv(1, size, "conv"),
            norm=None if self.norm is None else self.norm(name="norm"),
            order=self.order,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)


class AttentionGate(LayerModule, kw_only=True):
    """The attention gate of Attention U-Net; see `flax_attn.nnx.AttentionGate`.

    Example:
      >>> x, gating = jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 24))
      >>> linen.AttentionGate().init_with_output(key, x, gating)[0].shape
      (2, 8, 8, 16)
    """

    reduction: int = 2
    hidden_features: int | None = None
    strides: int = 2
    use_bias: bool = True
    norm: Any = None
    activation_fn: Activation = jax.nn.relu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, gating: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden = attention_gate_features(
            features, self.reduction, self.hidden_features, self.strides
        )
        theta = self._conv(
            hidden, self.strides, "theta", use_bias=False, strides=self.strides, padding=0
        )
        gate = attention_gate_gate(
            x,
            gating,
            self._normalised(theta),
            self._normalised(self._dense(hidden, "phi")),
            self._normalised(self._dense(1, "psi")),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)

    def _normalised(self, layer: nn.Module) -> Map:
        if self.norm is None:
            return layer
        norm = self.norm(name=f"{layer.name}_norm")
        return lambda x: norm(layer(x))


class CoordinateAttention(NormModule, kw_only=True):
    """Coordinate attention; see `flax_attn.nnx.CoordinateAttention`.

    Example:
      >>> linen.CoordinateAttention(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 32
    min_features: int = 8
    hidden_features: int | None = None
    use_bias: bool = True
    norm: Any = default_norm(BatchNorm)
    activation_fn: Activation = jax.nn.hard_swish
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features(
            "CoordinateAttention", features, self.reduction, self.hidden_features, self.min_features
        )
        gates = coordinate_attention_gate(
            x,
            self._dense(hidden, "reduce"),
            self._norm(use_running_average)(name="norm"),
            self._dense(features, "expand_height"),
            self._dense(features, "expand_width"),
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, *gates)


class EfficientLocalAttention(LayerModule, kw_only=True):
    """Efficient local attention; see `flax_attn.nnx.EfficientLocalAttention`.

    Example:
      >>> linen.EfficientLocalAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_size: int = 7
    group_size: int = 1
    num_groups: int = 16
    use_bias: bool = False
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        check_efficient_local_attention(
            features, self.kernel_size, self.group_size, self.num_groups
        )
        conv = self._conv(features, (self.kernel_size,), "conv", groups=features // self.group_size)
        norm = nn.GroupNorm(
            self.num_groups,
            epsilon=1e-5,
            reduction_axes=(-2, -1),
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="norm",
        )
        gates = efficient_local_attention_gate(x, conv, norm, gate_fn=self.gate_fn)
        return self._scale(x, *gates)


class TripletAttention(NormModule, kw_only=True):
    """Triplet attention; see `flax_attn.nnx.TripletAttention`.

    Example:
      >>> linen.TripletAttention(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    kernel_size: int = 7
    use_spatial: bool = True
    use_bias: bool = False
    norm: Any = SlowBatchNorm
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        size = check_odd("TripletAttention", self.kernel_size)
        norm = self._norm(use_running_average)
        layers: dict[str, Any] = {}
        for plane in ("cw", "hc", "hw") if self.use_spatial else ("cw", "hc"):
            layers[f"conv_{plane}"] = self._conv(1, size, f"conv_{plane}")
            layers[f"norm_{plane}"] = norm(name=f"norm_{plane}")
        y, gate = triplet_attention_and_gate(x, **layers, gate_fn=self.gate_fn)
        return self._sown(y, gate=gate)


class SimAM(Module, kw_only=True):
    """SimAM; see `flax_attn.nnx.SimAM`.

    Example:
      >>> linen.SimAM().apply({}, x).shape
      (2, 8, 8, 64)
    """

    e_lambda: float = 1e-4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, gate = simam_and_gate(x, self.e_lambda)
        return self._sown(y, gate=gate)
