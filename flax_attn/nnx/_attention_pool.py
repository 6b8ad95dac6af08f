"""Attention pooling as an NNX module."""

from typing import Unpack

import jax
from flax import nnx
from flax.typing import Initializer

from flax_attn._checks import head_features, output_features
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.vision import attention_pool
from flax_attn.vision._checks import as_image
from flax_attn.vision._windows import as_pair


class AttentionPool(Module):
    """Attention pooling, `flax_attn.vision.attention_pool`.

    Parameters `query`, `key`, `value`, `out`, and `positions` `[1 + H · W, C]`.

    Args:
      in_features: C.
      input_size: (H, W), which all images must have.
      num_heads: N, of D = C // N channels each; C / 64 in CLIP.
      out_features: M; C by default.
      use_bias: If True, the layers have biases.
      position_init: Initializer of the positions; variance 1 / C by default, as in CLIP.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> pool = nnx.AttentionPool(16, (7, 7), out_features=10, rngs=flax_nnx.Rngs(0))
      >>> pool(jnp.ones((2, 7, 7, 16))).shape
      (2, 10)
    """

    def __init__(
        self,
        in_features: int,
        input_size: tuple[int, int],
        *,
        num_heads: int = 8,
        out_features: int | None = None,
        use_bias: bool = True,
        position_init: Initializer = nnx.initializers.variance_scaling(1.0, "fan_out", "normal"),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        height, width = as_pair("AttentionPool", "input_size", input_size, 1)
        heads = (num_heads, head_features("AttentionPool", in_features, num_heads))
        out_features = output_features("AttentionPool", in_features, out_features)
        layers = self._layers(rngs, **layer_options)
        self.positions = layers.param(position_init, 1 + height * width, in_features)
        self.query = layers.heads(in_features, heads, use_bias=use_bias)
        self.key = layers.heads(in_features, heads, use_bias=use_bias)
        self.value = layers.heads(in_features, heads, use_bias=use_bias)
        self.out = layers.join(heads, out_features, use_bias=use_bias)
        self.input_size = (height, width)

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Pool `[*B, H, W, C]` to `[*B, M]`; may sow `attention_weights` `[*B, N, 1, 1 + H·W]`."""
        self._check(x)
        x = as_image("AttentionPool", x)
        if x.shape[-3:-1] != self.input_size:
            raise ValueError(
                f"AttentionPool: the image must have the size (H, W) = {self.input_size} that the "
                f"module was made for, got {list(x.shape)}."
            )
        return attention_pool(
            x,
            self.positions[...],
            self.query,
            self.key,
            self.value,
            self.out,
            attention=self._attention(sow_weights),
        )
