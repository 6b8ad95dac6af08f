"""Focal modulation as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.vision import focal_modulation
from flax_attn.vision._focal_modulation import exact_gelu, kernel_sizes


class FocalModulation(LayerModule, kw_only=True):
    """Focal modulation, `flax_attn.vision.focal_modulation`.

    Parameters `query`, `context`, `gate`, `conv_0 ...`, `modulate`, `out`, and `norm` if there is
    one. Sows `level_gates` `[*B, H, W, L + 1]`, the weight of each level at each place.

    Attributes:
      num_levels: L.
      kernel_size: Size of the first depthwise kernel, odd.
      kernel_growth: Difference of the sizes of consecutive kernels, even.
      norm: Makes the normalisation before `out`, such as `nn.LayerNorm`; None for none.
      use_bias: If True, the layers have biases. The convolutions never have, `out` always has.

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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Modulate the places of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        sizes = kernel_sizes(self.num_levels, self.kernel_size, self.kernel_growth)
        gate = self._dense(self.num_levels + 1, "gate", use_bias=self.use_bias)

        def sown_gate(x: jax.Array) -> jax.Array:
            gates = gate(x)
            self.sow("intermediates", "level_gates", gates)
            return gates

        return focal_modulation(
            x,
            self._dense(features, "query", use_bias=self.use_bias),
            self._dense(features, "context", use_bias=self.use_bias),
            sown_gate,
            [
                self._conv(features, size, f"conv_{i}", use_bias=False, groups=features)
                for i, size in enumerate(sizes)
            ],
            self._dense(features, "modulate", use_bias=self.use_bias),
            self._dense(features, "out"),
            norm=None if self.norm is None else self.norm(name="norm"),
            normalize_modulator=self.normalize_modulator,
            activation_fn=self.activation_fn,
        )
