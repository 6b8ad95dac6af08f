"""Attention of every place to every place, or to what stands for all, as NNX modules."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_positive, reduced_features
from flax_attn._cpu.one_channel import sum_of_one
from flax_attn._jax import is_captured
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import BatchNorm, LayerNorm, ZeroBatchNorm
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


class NonLocal(Module):
    """The non-local block, `flax_attn.vision.non_local`.

    Parameters `query`, `key`, `value`, `out`, `norm`.

    Args:
      norm: As in all modules that normalise; by default its scale starts at 0, so that the block
        starts as the identity.

    Example:
      >>> nnx.NonLocal(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 2,
        hidden_features: int | None = None,
        subsample: int = 1,
        scale: float | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = ZeroBatchNorm,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features("NonLocal", in_features, reduction, hidden_features)
        self.query = layers.linear(in_features, hidden)
        self.key = layers.linear(in_features, hidden)
        self.value = layers.linear(in_features, hidden)
        self.out = layers.linear(hidden, in_features)
        self.norm = layers.norm(norm, in_features)
        self.subsample, self.scale = subsample, scale

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within `[*B, H, W, C]`; may sow `attention_weights` `[*B, H·W, H'·W']`."""
        self._check(x)
        result = non_local(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            norm=self.norm,
            subsample=self.subsample,
            scale=self.scale,
            return_weights=sow_weights,
        )
        return self._sown_on_request(*result) if sow_weights else result


class GlobalContext(Module):
    """The global context block, `flax_attn.vision.global_context`.

    Parameters `score`, `reduce`, `norm`, `expand`. Sows `attention_weights` `[*B, H, W, 1]`.

    Args:
      use_attention: If True, attention pools the context; if False, the mean, without `score`.
      norm: Makes the normalisation; by default layer normalisation with the ε of PyTorch and an
        exact variance.
      expand_kernel_init: Initializer of the kernel of `expand`. Zeros start as the identity.

    Example:
      >>> nnx.GlobalContext(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 16,
        hidden_features: int | None = None,
        use_attention: bool = True,
        combine: Literal["add", "multiply"] = "add",
        use_bias: bool = True,
        norm: Callable[..., Any] = LayerNorm,
        activation_fn: Activation = jax.nn.relu,
        expand_kernel_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features("GlobalContext", in_features, reduction, hidden_features)
        self.score = nnx.data(None)
        if use_attention:
            self.score = layers.linear(in_features, 1, dot_general=sum_of_one)
        self.reduce = layers.linear(in_features, hidden)
        self.norm = layers.norm(norm, hidden)
        self.expand = layers.linear(hidden, in_features, kernel_init=expand_kernel_init)
        self.combine, self.activation_fn = combine, activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Give an image `[*B, H, W, C]` its context."""
        self._check(x)
        if self.score is not None and is_captured(self):
            x = self._sown(x, attention_weights=global_context_weights(x, self.score))
        return global_context(
            x,
            self.score,
            self.reduce,
            self.norm,
            self.expand,
            combine=self.combine,
            activation_fn=self.activation_fn,
        )


class PositionAttention(Module):
    """DANet's position attention, `flax_attn.vision.position_attention`.

    Parameters `query`, `key`, `value`, and the number `gamma`, which starts at 0, so that the
    module starts as the identity.

    Example:
      >>> nnx.PositionAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 8,
        hidden_features: int | None = None,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features("PositionAttention", in_features, reduction, hidden_features)
        self.query = layers.linear(in_features, hidden)
        self.key = layers.linear(in_features, hidden)
        self.value = layers.linear(in_features, in_features)
        self.gamma = layers.constant(0)

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend within `[*B, H, W, C]`; may sow `attention_weights` `[*B, H·W, H·W]`."""
        self._check(x)
        result = position_attention(
            x, self.query, self.key, self.value, self.gamma[...], return_weights=sow_weights
        )
        return self._sown_on_request(*result) if sow_weights else result


class ChannelAffinityAttention(Module):
    """DANet's channel attention, `flax_attn.vision.channel_affinity_attention`.

    Parameter `gamma`, a number that starts at 0, so that the module starts as the identity. Sows
    `attention_weights` `[*B, C, C]`.

    Example:
      >>> nnx.ChannelAffinityAttention(64)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self._set_in_features(in_features)
        self.gamma = nnx.Param(jnp.zeros((), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend from channel to channel of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = channel_affinity_attention(x, self.gamma[...], return_weights=True)
        return self._sown(y, attention_weights=weights)


class CrissCrossAttention(Module):
    """Criss-cross attention, `flax_attn.vision.criss_cross_attention`.

    Parameters `query`, `key`, `value`, and the number `gamma`, which starts at 0, so that the
    module starts as the identity.

    Example:
      >>> nnx.CrissCrossAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 8,
        hidden_features: int | None = None,
        recurrence: int = 2,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden = reduced_features("CrissCrossAttention", in_features, reduction, hidden_features)
        self.query = layers.linear(in_features, hidden)
        self.key = layers.linear(in_features, hidden)
        self.value = layers.linear(in_features, in_features)
        self.gamma = layers.constant(0)
        self.recurrence = recurrence

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Attend to rows and columns; may sow `attention_weights` `[*B, H, W, H + W]`."""
        self._check(x)
        result = criss_cross_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.gamma[...],
            recurrence=self.recurrence,
            return_weights=sow_weights,
        )
        return self._sown_on_request(*result) if sow_weights else result


class DoubleAttention(Module):
    """Double attention, `flax_attn.vision.double_attention`.

    Parameters `value`, `gather`, `distribute`, `out`. Sows `attention_weights`, the pair of
    gathering and distributing weights, each `[*B, H, W, S]`.

    Args:
      num_descriptors: S; R by default.

    Example:
      >>> nnx.DoubleAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 4,
        hidden_features: int | None = None,
        num_descriptors: int | None = None,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        hidden, descriptors = double_attention_features(
            in_features, reduction, hidden_features, num_descriptors
        )
        self.value = layers.linear(in_features, hidden)
        self.gather = layers.linear(in_features, descriptors)
        self.distribute = layers.linear(in_features, descriptors)
        self.out = layers.linear(hidden, in_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gather and distribute the features of an image `[*B, H, W, C]`."""
        self._check(x)
        y, weights = double_attention(
            x, self.value, self.gather, self.distribute, self.out, return_weights=True
        )
        return self._sown(y, attention_weights=weights)


class ExternalAttention(Module):
    """External attention, `flax_attn.vision.external_attention`.

    Parameters `query`, `key`, `value`, `out`, `norm`; `value` is initialised on its own, not as the
    transpose of `key`. Sows `attention_weights` `[*B, H, W, S]`.

    Args:
      memory_size: S, the number of memory slots.
      use_bias: If True, `query` has a bias; the other layers have none.

    Example:
      >>> nnx.ExternalAttention(64, rngs=rngs)(x).shape
      (2, 8, 8, 64)
    """

    def __init__(
        self,
        in_features: int,
        *,
        memory_size: int = 64,
        use_bias: bool = True,
        norm: Callable[..., Any] = BatchNorm,
        activation_fn: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        layers = self._layers_for(in_features, rngs, use_bias, **layer_options)
        check_positive("ExternalAttention", "memory_size", memory_size)
        self.query = layers.linear(in_features, in_features)
        self.key = layers.linear(in_features, memory_size, use_bias=False)
        self.value = layers.linear(memory_size, in_features, use_bias=False)
        self.out = layers.linear(in_features, in_features, use_bias=False)
        self.norm = layers.norm(norm, in_features)
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend from the places of an image `[*B, H, W, C]` to the memory."""
        self._check(x)
        y, weights = external_attention(
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            norm=self.norm,
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        return self._sown(y, attention_weights=weights)
