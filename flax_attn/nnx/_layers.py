"""Flax's layers, whose gradients of weights are summed in at least float32.

Convolutions and products take the forms of `flax_attn._cpu` on CPUs. Flax sums the gradient of a
bias in the layer's dtype; here the bias is added by `add_bias`.
"""

import types
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jax import lax

from flax_attn._cpu.bias import add_bias
from flax_attn._cpu.convolution import convolve
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
    """Call Flax's layer without its bias and with our products, then add the bias."""
    own = types.SimpleNamespace(**{**vars(layer), "use_bias": False, "bias": None})
    if isinstance(layer, Conv):
        if own.conv_general_dilated is lax.conv_general_dilated:
            own.conv_general_dilated = convolve
    elif own.dot_general in (None, lax.dot_general):
        own.dot_general = dot_general
    y = flax_layer.__call__(own, inputs, out_sharding=out_sharding)
    return y if layer.bias is None else add_bias(y, layer.bias[...])


Size = int | tuple[int, int]


class LayerOptions(TypedDict, total=False):
    """The options of the layers inside a module, which every module with layers takes by name.

    Attributes:
      dtype: dtype of the layers' computation; None infers it from input and parameters, as in Flax.
        Pooled statistics, scores and weights are float32 anyway. `norm` has a dtype of its own.
      param_dtype: dtype of the parameters, float32 by default.
      kernel_init: Initializer of the kernels, `lecun_normal()` by default.
      bias_init: Initializer of the biases, `zeros_init()` by default.
    """

    dtype: Dtype | None
    param_dtype: Dtype
    kernel_init: Initializer
    bias_init: Initializer


class Layers:
    """Makes the layers of a module. A layer's own options override those of the module."""

    def __init__(
        self, module: str, rngs: nnx.Rngs, use_bias: bool, **options: Unpack[LayerOptions]
    ):
        for name in options.keys() - LayerOptions.__annotations__.keys():
            raise TypeError(f"{module}.__init__() got an unexpected keyword argument {name!r}")
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(
                f"{module}: rngs must be an nnx.Rngs, got {type(rngs).__name__}. "
                f"Wrap a key or a seed: rngs=nnx.Rngs(key)."
            )
        self.module = module
        self.rngs = rngs
        self.options: dict[str, Any] = {"use_bias": use_bias, "rngs": rngs, **options}
        self.param_dtype = options.get("param_dtype", jnp.float32)

    def linear(self, in_features: int, out_features: int, **options: Any) -> Linear:
        """A linear layer of the last axis."""
        return Linear(in_features, out_features, **self.options | options)

    def general(self, in_features: Size, out_features: Size, **options: Any) -> LinearGeneral:
        """A linear layer of several axes: from features to heads `[..., N, D]`, or back."""
        return LinearGeneral(in_features, out_features, **self.options | options)

    def conv(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        dilation: int = 1,
        groups: int = 1,
        **options: Any,
    ) -> Conv:
        """A convolution. One size is that of a square kernel; by default the kernel is centred."""
        sizes = kernel_size if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
        return Conv(
            in_features,
            out_features,
            sizes,
            kernel_dilation=dilation,
            feature_group_count=groups,
            **{"padding": [dilation * (n // 2) for n in sizes]} | self.options | options,
        )

    def norm(self, norm: Callable[..., Any] | None, features: int) -> Any:
        """The normalisation that `norm` makes; None stands for none."""
        if isinstance(norm, nnx.Module):
            raise TypeError(
                f"{self.module}: norm must make the normalisation, got one, "
                f"{type(norm).__name__}. Pass the class, or "
                f"functools.partial(nnx.BatchNorm, momentum=0.9)."
            )
        return nnx.data(None if norm is None else norm(features, rngs=self.rngs))

    def param(self, initializer: Initializer, *shape: int) -> nnx.Param[jax.Array]:
        """A parameter of its own, outside of layers."""
        return nnx.Param(initializer(self.rngs.params(), shape, self.param_dtype))

    def constant(self, number: float, *shape: int) -> nnx.Param[jax.Array]:
        """A parameter that starts as one number everywhere, and takes no key."""
        return nnx.Param(jnp.full(shape, number, self.param_dtype))
