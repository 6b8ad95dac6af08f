"""The base class of the NNX modules: checks, sowing and pickling."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import check_features, check_positive
from flax_attn._jax import is_captured
from flax_attn._modules import with_weights
from flax_attn.attention import dot_product_attention
from flax_attn.nnx._layers import LayerOptions, Layers
from flax_attn.vision._gates import apply_gate


class Module(nnx.Module):
    """`flax.nnx.Module`, which knows the channels of its input, and can be pickled."""

    in_features: int | None = None

    def _layers_for(
        self,
        in_features: int | None,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        **options: Unpack[LayerOptions],
    ) -> Layers:
        """Store the channels of the input; returns what makes the layers."""
        self._set_in_features(in_features)
        return Layers(type(self).__name__, rngs, use_bias, **options)

    def _set_in_features(self, in_features: int | None) -> None:
        """Store the channels of the input; None means any number."""
        if in_features is not None:
            check_positive(type(self).__name__, "in_features", in_features)
        self.in_features = in_features

    def _check(self, x: jax.Array) -> None:
        """Raise unless the input has the channels that the module was made for."""
        if self.in_features is not None:
            check_features(type(self).__name__, x, self.in_features)

    def _sown(self, y: jax.Array, **values: Any) -> jax.Array:
        """The output `y`; inside `nnx.capture` the values, by their names, are sown.

        Elsewhere each call would make the module larger.
        """
        if is_captured(self):
            for name, value in values.items():
                self.sow(nnx.Intermediate, name, value)
        return y

    def _sow_on_request(self, name: str, value: Any) -> None:
        """Store `value`, which the caller asked for; raise outside `nnx.capture`."""
        if not is_captured(self):
            raise ValueError(
                f"{type(self).__name__}: {name} can be sown only inside nnx.capture. Write "
                f"nnx.capture(model, nnx.Intermediate)(...)."
            )
        self.sow(nnx.Intermediate, name, value)

    def _sown_on_request(self, y: jax.Array, weights: jax.Array) -> jax.Array:
        """The output `y`; sows the weights, which the caller asked for."""
        self._sow_on_request("attention_weights", weights)
        return y

    def _scale(self, x: jax.Array, *gates: jax.Array) -> jax.Array:
        """The image times its gate or gates, which are sown."""
        return self._sown(apply_gate(x, *gates), gate=gates if len(gates) > 1 else gates[0])

    def _attention(self, sow_weights: bool) -> Callable[..., jax.Array]:
        """`dot_product_attention`, which also sows `attention_weights` on request."""
        if not sow_weights:
            return dot_product_attention
        return with_weights(dot_product_attention, self._sow_on_request)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, for pickle and copy.

        The activation functions of JAX are compiled functions, which pickle refuses. They are
        stored by their names.
        """
        return {name: _to_name(value) for name, value in super().__getstate__().items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the attributes."""
        super().__setstate__({name: _from_name(value) for name, value in state.items()})


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function of JAX, as where it is found."""

    module: str
    name: str

    def __call__(self) -> Any:
        """Return the function. `functools.partial` accepts only callables, so this is one."""
        return _find(self.module, self.name)


def _to_name(value: Any) -> Any:
    if type(value) is functools.partial:
        return functools.partial(_to_name(value.func), *value.args, **value.keywords)
    name = getattr(value, "__name__", None)
    if callable(value) and isinstance(name, str):
        for module in ("jax.nn", "jax.numpy", value.__module__):
            if _find(module, name) is value:
                return _Name(module, name)
    return value


def _from_name(value: Any) -> Any:
    if type(value) is functools.partial:
        return functools.partial(_from_name(value.func), *value.args, **value.keywords)
    return value() if isinstance(value, _Name) else value


def _find(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name, None)
