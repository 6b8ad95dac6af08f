"""Focal modulation as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features
from flax_attn._cpu.convolution import convolve
from flax_attn.nnx._layers import Conv, Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import focal_modulation
from flax_attn.vision._focal_modulation import exact_gelu, kernel_sizes


class FocalModulation(Module):
    """Focal modulation, `flax_attn.vision.focal_modulation`.

    Parameters `query`, `context`, `gate`, `conv_0 ...`, `modulate`, `out`, and `norm` if there is
    one; sows `level_gates` `[*B, H, W, L + 1]`, how much each place takes of each level.

    Args:
      in_features: C.
      num_levels: L.
      kernel_size: Width of the first depthwise kernel, odd.
      kernel_growth: By how much each kernel is wider than the one before, even.
      normalize_modulator: Whether the sum over levels is divided by L + 1.
      norm: Makes the normalisation before `out`, called as `norm(C, rngs=rngs)`; None for none.
      use_bias: Whether the queries, contexts, gates and `modulate` have biases; the depthwise
        convolutions have none, and `out` has one.
      activation_fn: After each level.
      dtype: dtype of the maps, as in Flax; the mean and the sum over levels are float32, and `norm`
        has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

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
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        sizes = kernel_sizes(num_levels, kernel_size, kernel_growth)
        settings: dict[str, Any] = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        linear = functools.partial(Linear, in_features, bias_init=bias_init, **settings)
        self.query = linear(out_features=in_features, use_bias=use_bias)
        self.context = linear(out_features=in_features, use_bias=use_bias)
        self.gate = linear(out_features=num_levels + 1, use_bias=use_bias)
        for level, size in enumerate(sizes):
            conv = Conv(
                in_features,
                in_features,
                (size, size),
                padding=size // 2,
                feature_group_count=in_features,
                conv_general_dilated=convolve,
                use_bias=False,
                **settings,
            )
            setattr(self, f"conv_{level}", conv)
        self.modulate = linear(out_features=in_features, use_bias=use_bias)
        self.out = linear(out_features=in_features)
        self.norm = nnx.data(None if norm is None else norm(in_features, rngs=rngs))
        self.in_features = in_features
        self.num_levels = num_levels
        self.normalize_modulator = normalize_modulator
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Modulate the places of an image `[*B, H, W, C]`."""
        check_features("FocalModulation", x, self.in_features)

        def sown_gate(x: jax.Array) -> jax.Array:
            gates = self.gate(x)
            sow(self, "level_gates", gates)
            return gates

        return focal_modulation(
            x,
            self.query,
            self.context,
            sown_gate,
            [getattr(self, f"conv_{level}") for level in range(self.num_levels)],
            self.modulate,
            self.out,
            norm=self.norm,
            normalize_modulator=self.normalize_modulator,
            activation_fn=self.activation_fn,
        )
