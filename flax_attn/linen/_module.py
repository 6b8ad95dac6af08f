"""The base classes of the Linen modules: the options that many modules have, and their layers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._modules import with_weights
from flax_attn.attention import dot_product_attention
from flax_attn.linen._layers import Conv, Dense, DenseGeneral
from flax_attn.linen._norm import NEEDS_PHASE
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class Module(nn.Module):
    """`flax.linen.Module` with checks of constructor arguments, sowing and gates."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse the arguments of the NNX module, and a `norm` that is a module, not a class."""
        fields = [
            field for field in dataclasses.fields(cls) if field.name not in ("parent", "name")
        ]
        named_only = args and all(field.kw_only for field in fields)
        foreign = [
            name
            for name in ("in_features", "features", "rngs")
            if name in options and name not in {field.name for field in fields}
        ]
        if named_only or foreign:
            got = ", ".join([*map(repr, args), *(f"{name}=" for name in foreign)])
            raise TypeError(
                f"{cls.__name__}: options are passed by name, and the channels are inferred from "
                f"the input, got {got}. Write {cls.__name__}(); the keys go to init."
            )
        if isinstance(options.get("norm"), nn.Module):
            raise TypeError(
                f"{cls.__name__}: norm must make the normalisation, got one, "
                f"{type(options['norm']).__name__}. Pass the class, or "
                f"functools.partial(nn.BatchNorm, use_running_average=not train)."
            )
        return super().__new__(cls)

    def _image(self, x: jax.Array) -> tuple[jax.Array, int]:
        """The input, which must be an image `[*B, H, W, C]`, and C."""
        return as_image(type(self).__name__, x), x.shape[-1]

    def _sown(self, y: jax.Array, **values: Any) -> jax.Array:
        """The output `y`; the values, by their names, are sown."""
        for name, value in values.items():
            self.sow("intermediates", name, value)
        return y

    def _scale(self, x: jax.Array, *gates: jax.Array) -> jax.Array:
        """The image times its gate or gates, which are sown."""
        return self._sown(apply_gate(x, *gates), gate=gates if len(gates) > 1 else gates[0])

    def _attention(self, sow_weights: bool) -> Callable[..., jax.Array]:
        """`dot_product_attention`, which also sows `attention_weights` on request."""
        if not sow_weights:
            return dot_product_attention
        return with_weights(dot_product_attention, functools.partial(self.sow, "intermediates"))


class LayerModule(Module, kw_only=True):
    """A module that has layers of Flax.

    Attributes:
      use_bias: If True, the layers have biases.
      dtype: dtype of the layers' computation; None infers it from input and parameters, as in Flax.
        Pooled statistics, scores and weights are float32 anyway. `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
    """

    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    def _options(self, **own: Any) -> dict[str, Any]:
        """The options of a layer: its own where they are given, otherwise those of the module."""
        names = ("use_bias", "dtype", "param_dtype", "kernel_init", "bias_init")
        return {name: getattr(self, name) for name in names} | own

    def _dense(self, features: int, name: str, **options: Any) -> Dense:
        """A dense layer of the last axis."""
        return Dense(features, name=name, **self._options(**options))

    def _general(self, features: int | tuple[int, int], name: str, **options: Any) -> DenseGeneral:
        """A dense layer of several axes: from features to heads `[..., N, D]`, or back."""
        return DenseGeneral(features, name=name, **self._options(**options))

    def _conv(
        self,
        features: int,
        kernel_size: int | Sequence[int],
        name: str,
        *,
        dilation: int = 1,
        groups: int = 1,
        **options: Any,
    ) -> Conv:
        """A convolution. One size is that of a square kernel; by default the kernel is centred."""
        sizes = kernel_size if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
        return Conv(
            features,
            sizes,
            name=name,
            kernel_dilation=dilation,
            feature_group_count=groups,
            **{"padding": [dilation * (n // 2) for n in sizes]} | self._options(**options),
        )


class NormModule(LayerModule, kw_only=True):
    """A module that normalises between its layers.

    Attributes:
      norm: Makes each normalisation, called as `norm(name=...)`. The default needs
        `use_running_average`. A norm of your own may hold it:
        `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: If True, running statistics are used (`not train`). It may be given at
        the call instead.
    """

    norm: Any
    use_running_average: bool | None = None

    def _norm(self, use_running_average: bool | None) -> Callable[..., Any]:
        """`norm` with the phase, which is the attribute or the argument of the call."""
        if self.use_running_average is not None or use_running_average is not None:
            phase = nn.merge_param(
                "use_running_average", self.use_running_average, use_running_average
            )
            return functools.partial(self.norm, use_running_average=phase)
        if self.norm in NEEDS_PHASE:
            raise ValueError(
                f"{type(self).__name__}: use_running_average must be given: batch "
                f"normalisation depends on the phase. Pass use_running_average=not train, or a "
                f"norm of your own."
            )
        return self.norm
