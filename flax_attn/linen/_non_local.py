"""The non-local block as a Linen module."""

import functools
from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import reduced_features
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import ZeroBatchNorm, default_norm
from flax_attn.vision import non_local


class NonLocal(NormModule, kw_only=True):
    """The non-local block, `flax_attn.vision.non_local`.

    Parameters `query`, `key`, `value`, `out`, `norm`.

    Attributes:
      reduction: R = C // reduction.
      hidden_features: Explicit R; overrides `reduction`.
      use_bias: If True, the layers have biases.
      norm: As in all modules that normalise; by default its scale starts at 0, so that the block
        starts as the identity.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> block = linen.NonLocal(use_running_average=True)
      >>> block.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    reduction: int = 2
    hidden_features: int | None = None
    subsample: int = 1
    scale: float | None = None
    use_bias: bool = True
    norm: Any = default_norm(ZeroBatchNorm)

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, sow_weights: bool = False
    ) -> jax.Array:
        """Attend from place to place of an image `[*B, H, W, C]`.

        With `sow_weights`, sows `attention_weights` `[*B, H·W, H'·W']`.
        """
        x = self._image(x)
        features = x.shape[-1]
        hidden = reduced_features("NonLocal", features, self.reduction, self.hidden_features)
        attend = functools.partial(
            non_local,
            x,
            self._dense(hidden, "query", use_bias=self.use_bias),
            self._dense(hidden, "key", use_bias=self.use_bias),
            self._dense(hidden, "value", use_bias=self.use_bias),
            self._dense(features, "out", use_bias=self.use_bias),
            norm=self._norm(use_running_average)(name="norm"),
            subsample=self.subsample,
            scale=self.scale,
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        self.sow("intermediates", "attention_weights", weights)
        return y
