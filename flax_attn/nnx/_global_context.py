"""Global context as an NNX module."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
from flax import nnx
from flax.typing import Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn._cpu.one_channel import sum_of_one
from flax_attn._jax import is_captured
from flax_attn.nnx._layers import LayerOptions
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import LayerNorm
from flax_attn.vision import global_context, global_context_weights


class GlobalContext(Module):
    """The global context block, `flax_attn.vision.global_context`.

    Parameters `score`, `reduce`, `norm`, `expand`. Sows `attention_weights` `[*B, H, W, 1]`.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_attention: If True, attention pools the context; if False, the mean, without `score`.
      use_bias: If True, the layers have biases.
      norm: Makes the normalisation; by default layer normalisation with the ε of PyTorch and an
        exact variance.
      expand_kernel_init: Initializer of the kernel of `expand`. Zeros start as the identity.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.GlobalContext(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 16,
        hidden_features: int | None = None,
        use_attention: bool = True,
        combine: Literal["add", "multiply"] = "add",
        use_bias: bool = True,
        norm: Callable[..., Any] = LayerNorm,
        activation_fn: Activation = jax.nn.relu,
        expand_kernel_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
        **layer_options: Unpack[LayerOptions],
    ):
        super().__init__(in_features)
        hidden = reduced_features("GlobalContext", in_features, reduction, hidden_features)
        layers = self._layers(rngs, **layer_options)
        self.score = nnx.data(None)
        if use_attention:
            self.score = layers.linear(in_features, 1, use_bias=use_bias, dot_general=sum_of_one)
        self.reduce = layers.linear(in_features, hidden, use_bias=use_bias)
        self.norm = layers.norm(norm, hidden)
        self.expand = layers.linear(
            hidden, in_features, use_bias=use_bias, kernel_init=expand_kernel_init
        )
        self.combine = combine
        self.activation_fn = activation_fn

    def __call__(self, x: jax.Array) -> jax.Array:
        """Give an image `[*B, H, W, C]` its context."""
        self._check(x)
        if self.score is not None and is_captured(self):
            self._sow("attention_weights", global_context_weights(x, self.score))
        return global_context(
            x,
            self.score,
            self.reduce,
            self.norm,
            self.expand,
            combine=self.combine,
            activation_fn=self.activation_fn,
        )
