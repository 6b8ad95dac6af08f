"""The non-local block as an NNX module."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from flax_attn._checks import check_features, reduced_features
from flax_attn.nnx._layers import Linear
from flax_attn.nnx._module import Module
from flax_attn.nnx._norm import ZeroBatchNorm
from flax_attn.nnx._sow import sow_on_request
from flax_attn.vision import non_local


class NonLocal(Module):
    """The non-local block, `flax_attn.vision.non_local`.

    Parameters `query`, `key`, `value`, `out`, `norm`.

    Args:
      in_features: C.
      reduction: R = C // reduction, of queries, keys and values.
      hidden_features: R, if not by the reduction.
      subsample: Width of the windows of which keys and values see the maxima; 2 in the released
        code.
      scale: Factor of the scores, default 1/√R.
      use_bias: Whether the maps have biases.
      norm: Makes the normalisation, called as `norm(C, rngs=rngs)`; the gain of the default starts
        at 0: the identity.
      dtype: dtype of the maps, as in Flax; scores and weights are float32, and `norm` has a dtype
        of its own.
      param_dtype: dtype of the parameters.
      kernel_init: Initializer of the kernels.
      bias_init: Initializer of the biases.
      rngs: Keys for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx as flax_nnx
      >>> from flax_attn import nnx
      >>> nnx.NonLocal(16, rngs=flax_nnx.Rngs(0))(jnp.ones((2, 7, 7, 16))).shape
      (2, 7, 7, 16)
    """

    def __init__(
        self,
        in_features: int,
        *,
        reduction: int = 2,
        hidden_features: int | None = None,
        subsample: int = 1,
        scale: float | None = None,
        use_bias: bool = True,
        norm: Callable[..., Any] = ZeroBatchNorm,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),
        bias_init: Initializer = nnx.initializers.zeros_init(),
        rngs: nnx.Rngs,
    ):
        hidden = reduced_features("NonLocal", in_features, reduction, hidden_features)
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
        self.value = linear(in_features, hidden)
        self.out = linear(hidden, in_features)
        self.norm = norm(in_features, rngs=rngs)
        self.subsample = subsample
        self.scale = scale
        self.in_features = in_features

    def __call__(self, x: jax.Array, *, sow_weights: bool = False) -> jax.Array:
        """Let the places of an image `[*B, H, W, C]` attend to one another.

        Args:
          x: The image.
          sow_weights: Whether to sow `attention_weights` `[*B, H·W, H'·W']` as `nnx.Intermediate`;
            raises outside `nnx.capture`.

        Returns:
          The image `[*B, H, W, C]`.
        """
        check_features("NonLocal", x, self.in_features)
        attend = functools.partial(
            non_local,
            x,
            self.query,
            self.key,
            self.value,
            self.out,
            norm=self.norm,
            subsample=self.subsample,
            scale=self.scale,
        )
        if not sow_weights:
            return attend()
        y, weights = attend(return_weights=True)
        sow_on_request(self, "attention_weights", weights)
        return y
