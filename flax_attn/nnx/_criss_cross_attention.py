"""Criss-cross attention as an NNX module."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, reduced_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._sow import sow_on_request
from flax_attn.vision import criss_cross_attention


class CrissCrossAttention(Module):
    """Criss-cross attention, `flax_attn.vision.criss_cross_attention`.

    Parameters `query`, `key`, `value`, and the number `gamma`, which starts at 0: the identity.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      recurrence: Number of steps, with the same parameters.
      use_bias: Whether the maps have biases.
      dtype: dtype of the maps, as in Flax; scores and weights are float32.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.CrissCrossAttention(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 8,
        hidden_features: int | None = None,
        recurrence: int = 2,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("CrissCrossAttention", in_features, reduction, hidden_features)
        linear = functools.partial(
            Linear,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.query = linear(in_features, hidden)
        self.key = linear(in_features, hidden)
        self.value = linear(in_features, in_features)
        self.gamma = nnx.Param(jnp.zeros((), param_dtype))
        self.recurrence = recurrence
        self.in_features = in_features

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Let the places of an image `[*B, H, W, C]` attend to their rows and columns.

        Args:
          x: The image.
          sow_weights: Whether to sow `attention_weights`, `[*B, H, W, H + W]` for each step, as
            `nnx.Intermediate`; raises outside `nnx.capture`.

        Returns:
          The image `[*B, H, W, C]`.
        """
        check_features("CrissCrossAttention", x, self.in_features)
        attend = functools.partial(
            criss_cross_attention,
            x,
            self.query,
            self.key,
            self.value,
            self.gamma[...],
            recurrence=self.recurrence,
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        sow_on_request(self, "attention_weights", weights)
        return y
