"""Global context as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, check_features, reduced_features
from flax_attn._cpu.one_channel import sum_of_one
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import LayerNorm
from flax_attn.nnx._sow import is_captured, sow
from flax_attn.vision import global_context, global_context_weights


class GlobalContext(Module):
    """The global context block, `flax_attn.vision.global_context`.

    Parameters `score`, `reduce`, `norm`, `expand`; sows `attention_weights` `[*B, H, W, 1]`.

    Args:
      in_features: C.
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      use_attention: Whether the context is pooled by attention; if not, by the mean, without
        `score`.
      combine: `"add"` as in the paper, or `"multiply"`.
      use_bias: Whether the maps have biases.
      norm: Makes the normalisation, called as `norm(R, rngs=rngs)`.
      activation_fn: After the normalisation.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels of `score` and `reduce`.
      expand_kernel_init: Initializer of the kernel of `expand`; zeros start as the identity.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

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
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        expand_kernel_init: Initializer = nnx.initializers.zeros_init(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("GlobalContext", in_features, reduction, hidden_features)
        linear = functools.partial(
            Linear,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.score = linear(in_features, 1, dot_general=sum_of_one) if use_attention else None
        self.reduce = linear(in_features, hidden)
        self.norm = norm(hidden, rngs=rngs)
        self.expand = linear(hidden, in_features, kernel_init=expand_kernel_init)
        self.combine = combine
        self.activation_fn = activation_fn
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Give an image `[*B, H, W, C]` its context."""
        check_features("GlobalContext", x, self.in_features)
        if self.score is not None and is_captured(self):
            sow(self, "attention_weights", global_context_weights(x, self.score))
        return global_context(
            x,
            self.score,
            self.reduce,
            self.norm,
            self.expand,
            combine=self.combine,
            activation_fn=self.activation_fn,
        )
