"""Global context as a Linen module."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn._cpu.one_channel import sum_of_one
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import LayerNorm, default_norm
from flax_attn.vision import global_context, global_context_weights
from flax_attn.vision._checks import as_image


class GlobalContext(Module, kw_only=True):
    """The global context block, `flax_attn.vision.global_context`.

    Parameters `score`, `reduce`, `norm`, `expand`; sows `attention_weights` `[*B, H, W, 1]`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: R, if not by the reduction.
      use_attention: Whether the context is pooled by attention; if not, by the mean, without
        `score`.
      combine: `"add"` as in the paper, or `"multiply"`.
      use_bias: Whether the maps have biases.
      norm: Makes the normalisation; by default layer normalisation with PyTorch's ε and an exact
        variance.
      activation_fn: After the normalisation.
      dtype: dtype of the maps, as in Flax; the pooled statistics are float32, and
        `norm` has a dtype of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels of `score` and `reduce`.
      expand_kernel_init: Initializer of the kernel of `expand`; zeros start as the identity.
      bias_init: Initializer of the biases.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> x = jnp.ones((2, 7, 7, 16))
      >>> linen.GlobalContext().init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 16
    hidden_features: int | None = None
    use_attention: bool = True
    combine: Literal["add", "multiply"] = "add"
    use_bias: bool = True
    norm: Any = default_norm(LayerNorm)
    activation_fn: Activation = jax.nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    expand_kernel_init: Initializer = nn.initializers.zeros_init()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Give an image `[*B, H, W, C]` its context."""
        x = as_image("GlobalContext", x)
        features = x.shape[-1]
        hidden = reduced_features("GlobalContext", features, self.reduction, self.hidden_features)
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        score = dense(1, name="score", dot_general=sum_of_one) if self.use_attention else None
        if score is not None and self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention_weights", global_context_weights(x, score))
        return global_context(
            x,
            score,
            dense(hidden, name="reduce"),
            self.norm(name="norm"),
            dense(features, kernel_init=self.expand_kernel_init, name="expand"),
            combine=self.combine,
            activation_fn=self.activation_fn,
        )
