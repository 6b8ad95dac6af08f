"""Large selective kernels as a Linen module."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.vision import large_selective_kernel_gate
from flax_attn.vision._large_selective_kernel import large_selective_kernel_sizes


class LargeSelectiveKernel(LayerModule, kw_only=True):
    """Large selective kernels, `flax_attn.vision.large_selective_kernel`.

    Parameters `conv_0 ...`, `reduce_0 ...`, `select`, `project`. Sows `gate` `[*B, H, W, C]`.

    Attributes:
      kernel_sizes: Size of each of the P kernels, odd.
      dilations: Dilation of each kernel.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      select_kernel_size: Size of the kernel of `select`, odd.
      use_bias: If True, the layers have biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.LargeSelectiveKernel()
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_sizes: Sequence[int] = (5, 7)
    dilations: Sequence[int] = (1, 3)
    reduction: int = 2
    hidden_features: int | None = None
    select_kernel_size: int = 7
    use_bias: bool = True
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = self._image(x)
        features, use_bias = x.shape[-1], self.use_bias
        hidden, kernels = large_selective_kernel_sizes(
            features,
            self.reduction,
            self.hidden_features,
            self.kernel_sizes,
            self.dilations,
            self.select_kernel_size,
        )
        convs, reduces = [], []
        for i, (size, dilation) in enumerate(kernels):
            conv = self._conv(
                features, size, f"conv_{i}", use_bias=use_bias, dilation=dilation, groups=features
            )
            convs.append(conv)
            reduces.append(self._dense(hidden, f"reduce_{i}", use_bias=use_bias))
        gate = large_selective_kernel_gate(
            x,
            convs,
            reduces,
            self._conv(len(kernels), self.select_kernel_size, "select", use_bias=use_bias),
            self._dense(features, "project", use_bias=use_bias),
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
