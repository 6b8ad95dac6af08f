"""Flax's layers, with gradients of weights that are summed in at least float32.

`use_bias` is taken over by `adds_bias`: Flax's own sums a gradient in the layer's dtype.
"""

import math

import jax
from flax import linen as nn
from flax.typing import Dtype, Shape

from flax_attn._cpu.bias import add_bias
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
    if layer.adds_bias is None:  # not in copies
        layer.adds_bias, layer.use_bias = layer.use_bias, False
        if not isinstance(layer, Conv) and layer.dot_general is None:
            layer.dot_general = dot_general


def _biased(layer: Layer, y: jax.Array, features: Shape) -> jax.Array:
    if not layer.adds_bias:
        return y

    def flat(key: jax.Array, shape: Shape, dtype: Dtype) -> jax.Array:
        bias = layer.bias_init(key, (math.prod(shape),), dtype)
        return jax.tree.map(lambda array: array.reshape(shape), bias)  # in a box of metadata, too

    return add_bias(y, layer.param("bias", flat, features, layer.param_dtype))
