"""Spatial attention as a Linen module."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, check_odd
from flax_attn.linen._module import LayerModule
from flax_attn.vision import spatial_attention_gate
from flax_attn.vision._spatial_attention import Pooling


class SpatialAttention(LayerModule, kw_only=True):
    """Spatial attention, `flax_attn.vision.spatial_attention`.

    Parameters `conv`, and `norm` if there is one. Sows `gate` `[*B, H, W, 1]`.

    Attributes:
      kernel_size: Size of the kernel, odd; 7 in the paper.
      use_bias: If True, the convolution has a bias.
      norm: Makes the normalisation after the convolution, for example
        `functools.partial(nn.BatchNorm, use_running_average=not train)`; None for none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.SpatialAttention().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 3
    use_bias: bool = False
    norm: Any = None
    order: Sequence[Pooling] = ("mean", "max")
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the places of an image `[*B, H, W, C]`."""
        size = check_odd("SpatialAttention", self.kernel_size)
        gate = spatial_attention_gate(
            x,
            self._conv(1, size, "conv", use_bias=self.use_bias),
            norm=None if self.norm is None else self.norm(name="norm"),
            order=self.order,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
