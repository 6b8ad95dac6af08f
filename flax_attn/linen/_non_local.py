"""The non-local block as a Linen module."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from flax_attn._checks import reduced_features
from flax_attn.linen._layers import Dense
from flax_attn.linen._module import Module
from flax_attn.linen._norm import ZeroBatchNorm, default_norm, with_phase
from flax_attn.vision import non_local
from flax_attn.vision._checks import as_image


class NonLocal(Module, kw_only=True):
    """The non-local block, `flax_attn.vision.non_local`.

    Parameters `query`, `key`, `value`, `out`, `norm`.

    Attributes:
      reduction: R = C // reduction, of queries, keys and values.
      hidden_features: R, if not by the reduction.
      subsample: Width of the windows of which keys and values see the maxima; 2 in the released
        code.
      scale: Factor of the scores, default 1/√R.
      use_bias: Whether the maps have biases.
      norm: Makes the normalisation; by default batch normalisation with PyTorch's momentum, an
        exact variance and a gain that starts at 0: the identity. One of your own may know its
        phase: `functools.partial(nn.BatchNorm, use_running_average=not train)`.
      use_running_average: Whether the statistics are the running ones (`not train`); required by
        the default `norm`, and passed to others if given.
      dtype: dtype of the maps, as in Flax; scores and weights are float32, and `norm` has a dtype
        of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.

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
    use_running_average: bool | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, sow_weights: bool = False
    ) -> jax.Array:
        """Let the places of an image `[*B, H, W, C]` attend to one another.

        Args:
          x: The image.
          use_running_average: The phase, if the attribute is None.
          sow_weights: Whether to sow `attention_weights` `[*B, H·W, H'·W']` into "intermediates".

        Returns:
          The image `[*B, H, W, C]`.
        """
        x = as_image("NonLocal", x)
        features = x.shape[-1]
        hidden = reduced_features("NonLocal", features, self.reduction, self.hidden_features)
        norm = with_phase("NonLocal", self.norm, self.use_running_average, use_running_average)
        dense = functools.partial(
            Dense,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
        )
        attend = functools.partial(
            non_local,
            x,
            dense(hidden, name="query"),
            dense(hidden, name="key"),
            dense(hidden, name="value"),
            dense(features, name="out"),
            norm=norm(name="norm"),
            subsample=self.subsample,
            scale=self.scale,
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        self.sow("intermediates", "attention_weights", weights)
        return y
