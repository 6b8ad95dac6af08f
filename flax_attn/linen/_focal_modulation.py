"""Focal modulation as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation
from flax_attn._cpu.convolution import convolve
from flax_attn.linen._layers import Conv, Dense
from flax_attn.linen._module import Module
from flax_attn.vision import focal_modulation
from flax_attn.vision._checks import as_image
from flax_attn.vision._focal_modulation import exact_gelu, kernel_sizes


class FocalModulation(Module, kw_only=True):
    """Focal modulation, `flax_attn.vision.focal_modulation`.

    Parameters `query`, `context`, `gate`, `conv_0 ...`, `modulate`, `out`, and `norm` if there is
    one; sows `level_gates` `[*B, H, W, L + 1]`, how much each place takes of each level.

    Attributes:
      num_levels: L.
      kernel_size: Width of the first depthwise kernel, odd.
      kernel_growth: By how much each kernel is wider than the one before, even.
      normalize_modulator: Whether the sum over levels is divided by L + 1.
      norm: Makes the normalisation before `out`, such as `nn.LayerNorm`; None for none.
      use_bias: Whether the queries, contexts, gates and `modulate` have biases; the depthwise
        convolutions have none, and `out` has one.
      activation_fn: After each level.
      dtype: dtype of the maps, as in Flax; the mean and the sum over levels are float32, and `norm`
        has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> mixer = linen.FocalModulation()
      >>> mixer.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    num_levels: int = 2
    kernel_size: int = 3
    kernel_growth: int = 2
    normalize_modulator: bool = False
    norm: Any = None
    use_bias: bool = True
    activation_fn: Activation = exact_gelu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Modulate the places of an image `[*B, H, W, C]`."""
        x = as_image("FocalModulation", x)
        features = x.shape[-1]
        sizes = kernel_sizes(self.num_levels, self.kernel_size, self.kernel_growth)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
        }
        dense = functools.partial(Dense, bias_init=self.bias_init, **settings)

        def conv(level: int, size: int) -> Conv:
            return Conv(
                features,
                (size, size),
                padding=size // 2,
                feature_group_count=features,
                conv_general_dilated=convolve,
                use_bias=False,
                name=f"conv_{level}",
                **settings,
            )

        gate = dense(features=self.num_levels + 1, use_bias=self.use_bias, name="gate")

        def sown_gate(x: jax.Array) -> jax.Array:
            gates = gate(x)
            self.sow("intermediates", "level_gates", gates)
            return gates

        return focal_modulation(
            x,
            dense(features=features, use_bias=self.use_bias, name="query"),
            dense(features=features, use_bias=self.use_bias, name="context"),
            sown_gate,
            [conv(level, size) for level, size in enumerate(sizes)],
            dense(features=features, use_bias=self.use_bias, name="modulate"),
            dense(features=features, name="out"),
            norm=None if self.norm is None else self.norm(name="norm"),
            normalize_modulator=self.normalize_modulator,
            activation_fn=self.activation_fn,
        )
