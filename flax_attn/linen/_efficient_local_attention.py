"""Efficient local attention as a Linen module."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_multiple, check_odd
from flax_attn.linen._layers import Conv
from flax_attn.linen._module import Module
from flax_attn.vision import efficient_local_attention_gate
from flax_attn.vision._checks import as_image
from flax_attn.vision._gates import apply_gate


class EfficientLocalAttention(Module, kw_only=True):
    """Efficient local attention, `flax_attn.vision.efficient_local_attention`.

    The defaults are ELA-B. Parameters `conv`, `norm`; sows `gate`, the pair `[*B, H, 1, C]`,
    `[*B, 1, W, C]`.

    Attributes:
      kernel_size: Width of the kernel, odd: 7 in ELA-B and ELA-L, 5 in ELA-T and ELA-S.
      group_size: Channels that share their inputs in the convolution: 1 (depthwise) in ELA-B and
        ELA-T, 8 in ELA-S and ELA-L. C is a multiple.
      num_groups: Groups of the normalisation: 16, in ELA-T 32. C is a multiple.
      use_bias: Whether the convolution has a bias.
      gate_fn: From the normalised strips to the gates.
      dtype: dtype of the convolution and the normalisation, as in Flax; the pooled statistics are
        float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        x = as_image("EfficientLocalAttention", x)
        features = x.shape[-1]
        size = check_odd("EfficientLocalAttention", self.kernel_size)
        for name in ("group_size", "num_groups"):
            check_multiple("EfficientLocalAttention", "C", features, name, getattr(self, name))
        conv = Conv(
            features,
            (size,),
            padding=size // 2,
            feature_group_count=features // self.group_size,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name="conv",
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
        self.sow("intermediates", "gate", gates)
        return apply_gate(x, *gates)
