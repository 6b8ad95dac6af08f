"""Flax's layers, whose gradients of weights are summed in at least float32.

Convolutions and products take the forms of `flax_attn._cpu` on CPUs. Flax sums the gradient of a
bias in the layer's dtype; here the bias is added by `add_bias`, and Flax's `use_bias` is off.
"""

import math

import jax
from flax import linen as nn
from flax.typing import Dtype, Shape

from flax_attn._cpu.bias import add_bias
from flax_attn._cpu.convolution import convolve
from flax_attn._cpu.products import dot_general


class Dense(nn.Dense):
    """`flax.linen.Dense`."""

    adds_bias: bool | None = None

    def __post_init__(self) -> None:
        _take_over(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return _biased(self, super().__call__(inputs), (self.features,))


class DenseGeneral(nn.DenseGeneral):
    """`flax.linen.DenseGeneral`."""

    adds_bias: bool | None = None

    def __post_init__(self) -> None:
        _take_over(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        return _biased(self, super().__call__(inputs), features)


class Conv(nn.Conv):
    """`flax.linen.Conv`."""

    adds_bias: bool | None = None

    def __post_init__(self) -> None:
        _take_over(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return _biased(self, super().__call__(inputs), (self.features,))


Layer = Dense | DenseGeneral | Conv


def _take_over(layer: Layer) -> None:
    """Turn off what Flax would do itself."""
    if layer.adds_bias is not None:  # a copy, of which this was done before
        return
    layer.adds_bias, layer.use_bias = layer.use_bias, False
    if isinstance(layer, Conv):
        layer.conv_general_dilated = layer.conv_general_dilated or convolve
    else:
        layer.dot_general = layer.dot_general or dot_general


def _biased(layer: Layer, y: jax.Array, features: Shape) -> jax.Array:
    if not layer.adds_bias:
        return y

    def flat(key: jax.Array, shape: Shape, dtype: Dtype) -> jax.Array:
        bias = layer.bias_init(key, (math.prod(shape),), dtype)
        return jax.tree.map(lambda array: array.reshape(shape), bias)  # it may be in a box

    return add_bias(y, layer.param("bias", flat, features, layer.param_dtype))
