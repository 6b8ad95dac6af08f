"""Efficient local attention as an NNX module."""

from typing import Unpack

import jax
from flax import nnx

from flax_attn._checks import Activation
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import efficient_local_attention_gate
from flax_attn.vision._efficient_local_attention import check_efficient_local_attention


class EfficientLocalAttention(Module):
    """Efficient local attention, `flax_attn.vision.efficient_local_attention`.

    The defaults are ELA-B. Parameters `conv`, `norm`. Sows `gate`, the pair `[*B, H, 1, C]`,
    `[*B, 1, W, C]`.

    Args:
      in_features: C.
      kernel_size: Size of the kernel, odd: 7 in ELA-B and ELA-L, 5 in ELA-T and ELA-S.
      group_size: Channels of a group of the convolution: 1 (depthwise) in ELA-B and ELA-T, 8 in
        ELA-S and ELA-L. It divides C.
      num_groups: Groups of the normalisation: 32 in ELA-T, otherwise 16. It divides C.
      use_bias: If True, the convolution has a bias.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.EfficientLocalAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        kernel_size: int = 7,
        group_size: int = 1,
        num_groups: int = 16,
        use_bias: bool = False,
        gate_fn: Activation = jax.nn.sigmoid,
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        check_efficient_local_attention(in_features, kernel_size, group_size, num_groups)
        self.conv = self._layers(rngs, **layer_options).conv(
            in_features,
            in_features,
            (kernel_size,),
            use_bias=use_bias,
            groups=in_features // group_size,
        )
        self.norm = nnx.GroupNorm(
            in_features,
            num_groups,
            epsilon=1e-5,
            reduction_axes=(-2, -1),
            use_fast_variance=False,
            dtype=layer_options.get("dtype"),
            param_dtype=self.conv.param_dtype,
            rngs=rngs,
        )
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        self._check(x)

        def norm(strips: jax.Array) -> jax.Array:  # Flax's takes one leading axis for the batch
            flat = strips.reshape(-1, *strips.shape[-2:])
            return self.norm(flat).reshape(strips.shape)

        gates = efficient_local_attention_gate(x, self.conv, norm, gate_fn=self.gate_fn)
        return self._scale(x, *gates)
