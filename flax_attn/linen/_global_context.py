"""Global context as a Linen module."""

from typing import Any, Literal

import jax
from flax import linen as nn
from flax.typing import Initializer

from flax_attn._checks import Activation, reduced_features
from flax_attn._cpu.one_channel import sum_of_one
from flax_attn.linen._module import LayerModule
from flax_attn.linen._norm import LayerNorm, default_norm
from flax_attn.vision import global_context, global_context_weights


class GlobalContext(LayerModule, kw_only=True):
    """The global context block, `flax_attn.vision.global_context`.

    Parameters `score`, `reduce`, `norm`, `expand`. Sows `attention_weights` `[*B, H, W, 1]`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_attention: If True, attention pools the context; if False, the mean, without `score`.
      use_bias: If True, the layers have biases.
      norm: Makes the normalisation; by default layer normalisation with the ε of PyTorch and an
        exact variance.
      expand_kernel_init: Initializer of the kernel of `expand`. Zeros start as the identity.

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
    expand_kernel_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Give an image `[*B, H, W, C]` its context."""
        x = self._image(x)
        features = x.shape[-1]
        hidden = reduced_features("GlobalContext", features, self.reduction, self.hidden_features)
        score = None
        if self.use_attention:
            score = self._dense(1, "score", use_bias=self.use_bias, dot_general=sum_of_one)
            if self.is_mutable_collection("intermediates"):
                self.sow("intermediates", "attention_weights", global_context_weights(x, score))
        return global_context(
            x,
            score,
            self._dense(hidden, "reduce", use_bias=self.use_bias),
            self.norm(name="norm"),
            self._dense(
                features, "expand", use_bias=self.use_bias, kernel_init=self.expand_kernel_init
            ),
            combine=self.combine,
            activation_fn=self.activation_fn,
        )
