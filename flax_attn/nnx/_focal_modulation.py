"""Focal modulation as an NNX module."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import focal_modulation
from flax_attn.vision._focal_modulation import exact_gelu, kernel_sizes


class FocalModulation(Module):
    """Focal modulation, `flax_attn.vision.focal_modulation`.

    Parameters `query`, `context`, `gate`, `conv_0 ...`, `modulate`, `out`, and `norm` if there is
    one. Sows `level_gates` `[*B, H, W, L + 1]`, the weight of each level at each place.

    Args:
      in_features: C.
      num_levels: L.
      kernel_size: Size of the first depthwise kernel, odd.
      kernel_growth: Difference of the sizes of consecutive kernels, even.
      norm: Makes the normalisation before `out`, such as `nnx.LayerNorm`; None for none.
      use_bias: If True, the layers have biases. The convolutions never have, `out` always has.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.FocalModulation(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_levels: int = 2,
        kernel_size: int = 3,
        kernel_growth: int = 2,
        normalize_modulator: bool = False,
        norm: Callable[..., Any] | None = None,
        use_bias: bool = True,
        activation_fn: Activation = exact_gelu,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        features, sizes = in_features, kernel_sizes(num_levels, kernel_size, kernel_growth)
        layers = self._layers(rngs, **layer_options)
        self.query = layers.linear(features, features, use_bias=use_bias)
        self.context = layers.linear(features, features, use_bias=use_bias)
        self.gate = layers.linear(features, num_levels + 1, use_bias=use_bias)
        for i, size in enumerate(sizes):
            conv = layers.conv(features, features, size, use_bias=False, groups=features)
            setattr(self, f"conv_{i}", conv)
        self.modulate = layers.linear(features, features, use_bias=use_bias)
        self.out = layers.linear(features, features)
        self.norm = layers.norm(norm, features)
        self.num_levels = num_levels
        self.normalize_modulator = normalize_modulator
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Modulate the places of an image `[*B, H, W, C]`."""
        self._check(x)

        def sown_gate(x: jax.Array) -> jax.Array:
            gates = self.gate(x)
            self._sow("level_gates", gates)
            return gates

        return focal_modulation(
            x,
            self.query,
            self.context,
            sown_gate,
            [getattr(self, f"conv_{i}") for i in range(self.num_levels)],
            self.modulate,
            self.out,
            norm=self.norm,
            normalize_modulator=self.normalize_modulator,
            activation_fn=self.activation_fn,
        )
