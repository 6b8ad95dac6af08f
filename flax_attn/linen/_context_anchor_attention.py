"""Context anchor attention as a Linen module."""

from typing import Any

import jax
from flax import linen as nn

from flax_attn._checks import Activation, check_odd
from flax_attn.linen._module import NormModule
from flax_attn.linen._norm import DetectorBatchNorm
from flax_attn.vision import context_anchor_attention_gate


class ContextAnchorAttention(NormModule, kw_only=True):
    """Context anchor attention, `flax_attn.vision.context_anchor_attention`.

    Parameters `project_in`, `norm_in`, `row`, `column`, `project_out`, `norm_out`. Sows `gate`
    `[*B, H, W, C]`.

    Attributes:
      kernel_size: Length of the strips, odd; in the paper's networks it grows with the depth.
      use_bias: If True, the strips have biases, and without a norm the projections, too.
      norm: As in all modules that normalise; by default with the momentum 0.97 (of Flax) and the
        ε = 1e-3 of the released code. None for none:
        `norm=None, activation_fn=lambda u: u` is the form of the released networks.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import linen
      >>> attention = linen.ContextAnchorAttention(use_running_average=True)
      >>> attention.init_with_output(jax.random.key(0), jnp.ones((2, 7, 7, 16)))[0].shape
      (2, 7, 7, 16)
    """

    kernel_size: int = 11
    pool_size: int = 7
    use_bias: bool = True
    norm: Any = DetectorBatchNorm
    activation_fn: Activation = jax.nn.silu
    gate_fn: Activation = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Scale an image `[*B, H, W, C]`."""
        x = self._image(x)
        features = x.shape[-1]
        size = check_odd("ContextAnchorAttention", self.kernel_size)
        norm = self.norm and self._norm(use_running_average)
        project_bias = self.use_bias and norm is None
        gate = context_anchor_attention_gate(
            x,
            self._dense(features, "project_in", use_bias=project_bias),
            norm and norm(name="norm_in"),
            self._conv(features, (1, size), "row", use_bias=self.use_bias, groups=features),
            self._conv(features, (size, 1), "column", use_bias=self.use_bias, groups=features),
            self._dense(features, "project_out", use_bias=project_bias),
            norm and norm(name="norm_out"),
            pool_size=self.pool_size,
            activation_fn=self.activation_fn,
            gate_fn=self.gate_fn,
        )
        return self._scale(x, gate)
