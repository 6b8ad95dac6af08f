"""Efficient channel attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.vision import eca_gate
from flax_attn.vision._eca import as_kernel_size


class ECA(LayerModule, kw_only=True):
    """Efficient channel attention, `flax_attn.vision.eca`.

    Parameter `conv`, without a bias. Sows `gate` `[*B, 1, 1, C]`.

    Attributes:
      kernel_size: k, odd; `eca_kernel_size(C)` of the paper by default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.ECA().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int | None = None
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of an image `[*B, H, W, C]`."""
        x = self._image(x)
        size = as_kernel_size(x.shape[-1], self.kernel_size)
        conv = self._conv(1, (size,), "conv", use_bias=False)
        return self._scale(x, eca_gate(x, conv, gate_fn=self.gate_fn))
