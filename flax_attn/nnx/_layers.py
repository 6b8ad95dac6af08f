"""Flax's layers, with gradients of weights that are summed in at least float32."""

import types
from typing import Any

import jax
from flax import nnx
from jax import lax

from flax_attn._cpu.bias import add_bias
from flax_attn._cpu.products import dot_general


class Linear(nnx.Linear):
    """`flax.nnx.Linear`."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        return _apply(nnx.Linear, self, inputs, out_sharding)


class LinearGeneral(nnx.LinearGeneral):
    """`flax.nnx.LinearGeneral`."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        return _apply(nnx.LinearGeneral, self, inputs, out_sharding)


class Conv(nnx.Conv):
    """`flax.nnx.Conv`."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        return _apply(nnx.Conv, self, inputs, out_sharding)


def _apply(flax_layer: Any, layer: Any, inputs: jax.Array, out_sharding: Any) -> jax.Array:
    """What Flax's layer computes; but it would sum the gradient of the bias in its own dtype."""
    without = types.SimpleNamespace(**{**vars(layer), "use_bias": False, "bias": None})
    if getattr(without, "dot_general", "none") in (None, lax.dot_general):
        without.dot_general = dot_general
    y = flax_layer.__call__(without, inputs, out_sharding=out_sharding)
    return y if layer.bias is None else add_bias(y, layer.bias[...])
