"""Efficient local attention as a Linen module."""

import jax
from flax import linen as nn

from flax_attn._checks import Activation
from flax_attn.linen._module import LayerModule
from flax_attn.vision import efficient_local_attention_gate
from flax_attn.vision._efficient_local_attention import check_efficient_local_attention


class EfficientLocalAttention(LayerModule, kw_only=True):
    """Efficient local attention, `flax_attn.vision.efficient_local_attention`.

    The defaults are ELA-B. Parameters `conv`, `norm`. Sows `gate`, the pair `[*B, H, 1, C]`,
    `[*B, 1, W, C]`.

    Attributes:
      kernel_size: Size of the kernel, odd: 7 in ELA-B and ELA-L, 5 in ELA-T and ELA-S.
      group_size: Channels of a group of the convolution: 1 (depthwise) in ELA-B and ELA-T, 8 in
        ELA-S and ELA-L. It divides C.
      num_groups: Groups of the normalisation: 32 in ELA-T, otherwise 16. It divides C.
      use_bias: If True, the convolution has a bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.EfficientLocalAttention().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 7
    group_size: int = 1
    num_groups: int = 16
    use_bias: bool = False
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        check_efficient_local_attention(
            features, self.kernel_size, self.group_size, self.num_groups
        )
        conv = self._conv(
            features,
            (self.kernel_size,),
            "conv",
            use_bias=self.use_bias,
            groups=features // self.group_size,
        )
        norm = nn.GroupNorm(
            self.num_groups,
            epsilon=1e-5,
            reduction_axes=(-2, -1),
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="norm",
        )
        gates = efficient_local_attention_gate(x, conv, norm, gate_fn=self.gate_fn)
        return self._scale(x, *gates)
