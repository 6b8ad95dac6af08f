"""Separable large kernel attention as a Linen module."""

import functools

import jax
from flax import linen as nn

from flax_attn.linen._module import LayerModule
from flax_attn.vision import separable_kernel_sizes, separable_large_kernel_attention_gate


class SeparableLargeKernelAttention(LayerModule, kw_only=True):
    """Large kernel attention by strips, `flax_attn.vision.separable_large_kernel_attention`.

    Parameters `local_row`, `local_column`, `dilated_row`, `dilated_column`, `project`. Sows `gate`
    `[*B, H, W, C]`.

    Attributes:
      kernel_size: Size of the kernel that the strips replace: 7, 11, 23, 35, 41 or 53.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.SeparableLargeKernelAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 23
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        local, dilated, dilation = separable_kernel_sizes(self.kernel_size)
        strip = functools.partial(self._conv, features, use_bias=self.use_bias, groups=features)
        gate = separable_large_kernel_attention_gate(
            x,
            strip((1, local), "local_row"),
            strip((local, 1), "local_column"),
            strip((1, dilated), "dilated_row", dilation=dilation),
            strip((dilated, 1), "dilated_column", dilation=dilation),
            self._dense(features, "project", use_bias=self.use_bias),
        )
        return self._scale(x, gate)
