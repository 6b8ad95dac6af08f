"""External attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, check_positive
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import BatchNorm, default_norm
from flax_attn.vision import external_attention


class ExternalAttention(NormModule, kw_only=True):
    """External attention, `flax_attn.vision.external_attention`.

    Parameters `query`, `key`, `value`, `out`, `norm`; `value` is initialised on its own, not as the
    transpose of `key`. Sows `attention_weights` `[*B, H, W, S]`.

    Attributes:
      memory_size: S, the number of memory slots.
      use_bias: If True, `query` has a bias; the other layers have none.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.ExternalAttention(use_running_average=True)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    memory_size: int = 64
    use_bias: bool = True
    norm: Any = default_norm(BatchNorm)
    activation_fn: Activation = jax.nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Attend from the places of an image `[*B, H, W, C]` to the memory."""
        x = self._image(x)
        features = x.shape[-1]
        check_positive("ExternalAttention", "memory_size", self.memory_size)
        y, weights = external_attention(
            x,
            self._dense(features, "query", use_bias=self.use_bias),
            self._dense(self.memory_size, "key", use_bias=False),
            self._dense(features, "value", use_bias=False),
            self._dense(features, "out", use_bias=False),
            norm=self._norm(use_running_average)(name="norm"),
            activation_fn=self.activation_fn,
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights)
        return y
