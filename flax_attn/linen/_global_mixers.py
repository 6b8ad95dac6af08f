"""Attention of every place to every place, or to what stands for all, as Linen modules."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_positive, reduced_features
from flax_attn._cpu.one_channel import sum_of_one
from flax_attn.linen._module import LayerModule, Module, NormModule
from flax_attn.linen._norm import BatchNorm, LayerNorm, ZeroBatchNorm, default_norm
from flax_attn.vision import (
    channel_affinity_attention,
    criss_cross_attention,
    double_attention,
    external_attention,
    global_context,
    global_context_weights,
    non_local,
    position_attention,
)
from flax_attn.vision._double_attention import double_attention_features


class NonLocal(NormModule, kw_only=True):
    """The non-local block; see `flax_attn.nnx.NonLocal`.

    Example:
      >>> linen.NonLocal(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 2
    hidden_features: int | None = None
    subsample: int = 1
    scale: float | None = None
    use_bias: bool = True
    norm: Any = default_norm(ZeroBatchNorm)

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, sow_weights: bool = False
    ) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features("NonLocal", features, self.reduction, self.hidden_features)
        result = non_local(
            x,
            self._dense(hidden, "query"),
            self._dense(hidden, "key"),
            self._dense(hidden, "value"),
            self._dense(features, "out"),
            norm=self._norm(use_running_average)(name="norm"),
            subsample=self.subsample,
            scale=self.scale,
            return_weights=sow_weights,
        )
        return self._sown(result[0], attention_weights=result[1]) if sow_weights else result


class GlobalContext(LayerModule, kw_only=True):
    """The global context block; see `flax_attn.nnx.GlobalContext`.

    Example:
      >>> linen.GlobalContext().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 16
    hidden_features: int | None = None
    use_attention: bool = True
    combine: Literal["add", "multiply"] = "add"
    use_bias: bool = True
    norm: Any = default_norm(LayerNorm)
    activation_fn: Activation = jax.nn.relu
    expand_kernel_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features("GlobalContext", features, self.reduction, self.hidden_features)
        score = None
        if self.use_attention:
            score = self._dense(1, "score", dot_general=sum_of_one)
            if self.is_mutable_collection("intermediates"):
                x = self._sown(x, attention_weights=global_context_weights(x, score))
        return global_context(
            x,
            score,
            self._dense(hidden, "reduce"),
            self.norm(name="norm"),
            self._dense(features, "expand", kernel_init=self.expand_kernel_init),
            combine=self.combine,
            activation_fn=self.activation_fn,
        )


class PositionAttention(LayerModule, kw_only=True):
    """DANet's position attention; see `flax_attn.nnx.PositionAttention`.

    Example:
      >>> linen.PositionAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 8
    hidden_features: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features(
            "PositionAttention", features, self.reduction, self.hidden_features
        )
        result = position_attention(
            x,
            self._dense(hidden, "query"),
            self._dense(hidden, "key"),
            self._dense(features, "value"),
            self.param("gamma", nn.initializers.zeros_init(), (), self.param_dtype),
            return_weights=sow_weights,
        )
        return self._sown(result[0], attention_weights=result[1]) if sow_weights else result


class ChannelAffinityAttention(Module, kw_only=True):
    """DANet's channel attention; see `flax_attn.nnx.ChannelAffinityAttention`.

    Example:
      >>> linen.ChannelAffinityAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.zeros_init(), (), self.param_dtype)
        y, weights = channel_affinity_attention(x, gamma, return_weights=True)
        return self._sown(y, attention_weights=weights)


class CrissCrossAttention(LayerModule, kw_only=True):
    """Criss-cross attention; see `flax_attn.nnx.CrissCrossAttention`.

    Example:
      >>> linen.CrissCrossAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 8
    hidden_features: int | None = None
    recurrence: int = 2
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        x, features = self._image(x)
        hidden = reduced_features(
            "CrissCrossAttention", features, self.reduction, self.hidden_features
        )
        result = criss_cross_attention(
            x,
            self._dense(hidden, "query"),
            self._dense(hidden, "key"),
            self._dense(features, "value"),
            self.param("gamma", nn.initializers.zeros_init(), (), self.param_dtype),
            recurrence=self.recurrence,
            return_weights=sow_weights,
        )
        return self._sown(result[0], attention_weights=result[1]) if sow_weights else result


class DoubleAttention(LayerModule, kw_only=True):
    """Double attention; see `flax_attn.nnx.DoubleAttention`.

    Example:
      >>> linen.DoubleAttention().init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    reduction: int = 4
    hidden_features: int | None = None
    num_descriptors: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, features = self._image(x)
        hidden, descriptors = double_attention_features(
            features, self.reduction, self.hidden_features, self.num_descriptors
        )
        y, weights = double_attention(
            x,
            self._dense(hidden, "value"),
            self._dense(descriptors, "gather"),
            self._dense(descriptors, "distribute"),
            self._dense(features, "out"),
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)


class ExternalAttention(NormModule, kw_only=True):
    """External attention; see `flax_attn.nnx.ExternalAttention`.

    Example:
      >>> linen.ExternalAttention(use_running_average=True).init_with_output(key, x)[0].shape
      (2, 8, 8, 64)
    """

    memory_size: int = 64
    use_bias: bool = True
    norm: Any = default_norm(BatchNorm)
    activation_fn: Activation = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        x, features = self._image(x)
        check_positive("ExternalAttention", "memory_size", self.memory_size)
        y, weights = external_attention(
            x,
            self._dense(features, "query"),
            self._dense(self.memory_size, "key", use_bias=False),
            self._dense(features, "value", use_bias=False),
            self._dense(features, "out", use_bias=False),
            norm=self._norm(use_running_average)(name="norm"),
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)
