"""Efficient local attention as an NNX module."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, check_multiple, check_odd
from flax_attn.nnx._layers import Conv
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow
from flax_attn.vision import efficient_local_attention_gate
from flax_attn.vision._gates import apply_gate


class EfficientLocalAttention(Module):
    """Efficient local attention, `flax_attn.vision.efficient_local_attention`.

    The defaults are ELA-B. Parameters `conv`, `norm`; sows `gate`, the pair `[*B, H, 1, C]`,
    `[*B, 1, W, C]`.

    Args:
      in_features: C.
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
      rngs: Keys for the parameters.

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
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        size = check_odd("EfficientLocalAttention", kernel_size)
        check_multiple("EfficientLocalAttention", "C", in_features, "group_size", group_size)
        check_multiple("EfficientLocalAttention", "C", in_features, "num_groups", num_groups)
        self.conv = Conv(
            in_features,
            in_features,
            (size,),
            padding=size // 2,
            feature_group_count=in_features // group_size,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.norm = nnx.GroupNorm(
            in_features,
            num_groups,
            epsilon=1e-5,
            reduction_axes=(-2, -1),
            use_fast_variance=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.in_features = in_features
        self.gate_fn = gate_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the rows and columns of an image `[*B, H, W, C]`."""
        check_features("EfficientLocalAttention", x, self.in_features)

        def norm(strips: jax.Array) -> jax.Array:  # Flax's takes one leading axis for the batch
            flat = strips.reshape(-1, *strips.shape[-2:])
            return self.norm(flat).reshape(strips.shape)

        gates = efficient_local_attention_gate(x, self.conv, norm, gate_fn=self.gate_fn)
        sow(self, "gate", gates)
        return apply_gate(x, *gates)
