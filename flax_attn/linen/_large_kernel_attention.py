"""Large kernel attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn.linen._module import LayerModule
from flax_attn.vision import large_kernel_attention_gate
from flax_attn.vision._large_kernel_attention import check_large_kernel_attention


class LargeKernelAttention(LayerModule, kw_only=True):
    """Large kernel attention, `flax_attn.vision.large_kernel_attention`.

    Parameters `local_conv`, `dilated_conv`, `project`. Sows `gate` `[*B, H, W, C]`.

    Attributes:
      kernel_size: Size of the local kernel, odd.
      dilated_kernel_size: Size of the dilated kernel, odd.
      dilation: Its dilation.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.LargeKernelAttention()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 5
    dilated_kernel_size: int = 7
    dilation: int = 3
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        check_large_kernel_attention(self.kernel_size, self.dilated_kernel_size, self.dilation)
        local_conv = self._conv(
            features, self.kernel_size, "local_conv", use_bias=self.use_bias, groups=features
        )
        dilated_conv = self._conv(
            features,
            self.dilated_kernel_size,
            "dilated_conv",
            use_bias=self.use_bias,
            dilation=self.dilation,
            groups=features,
        )
        project = self._dense(features, "project", use_bias=self.use_bias)
        return self._scale(x, large_kernel_attention_gate(x, local_conv, dilated_conv, project))
